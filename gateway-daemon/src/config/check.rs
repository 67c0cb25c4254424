//! From what is written to what is used: each table becomes its checked type, or faults.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use toml::Spanned;

use super::{
    Agent, Allow, Allowed, Config, ConfigError, Connection, Daemon, Fault, Guard, Issuer, Limits, Protect, RunsAs,
    Store, UidPool, UpstreamTls, raw,
};

/// The algorithms that a token may be signed with: asymmetric ones alone.
const DAY: Duration = Duration::from_secs(24 * 3600);
const ALGORITHMS: [&str; 5] = ["RS256", "PS256", "ES256", "ES384", "EdDSA"];

pub(super) fn check(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let root: raw::Root = toml::from_str(text).map_err(|error| ConfigError::Faults {
        path: path.to_owned(),
        faults: vec![Fault {
            line: error.span().map_or(0, |span| line_of(text, span.start)),
            key: String::new(),
            message: plainly(error.message()),
        }],
    })?;
    let issuers = root.issuer.iter().map(|issuer| issuer.get_ref().name.clone()).collect();
    let mut checker = Checker { text, issuers, faults: Vec::new() };
    let config = Config {
        path: path.to_owned(),
        daemon: checker.daemon(root.daemon),
        store: checker.store(root.store),
        issuers: root.issuer.into_iter().filter_map(|issuer| checker.issuer(issuer)).collect(),
        agents: root.agent.into_iter().map(|agent| checker.agent(agent)).collect(),
        connections: root.connection.into_iter().filter_map(|connection| checker.connection(connection)).collect(),
        protect: root.protect.into_iter().filter_map(|protect| checker.protect(protect)).collect(),
        allow: root.allow.into_iter().filter_map(|allow| checker.allow(allow)).collect(),
        limits: checker.limits(&root.limits),
    };
    checker.across(&config);
    if checker.faults.is_empty() {
        return Ok(config);
    }
    checker.faults.sort_by_key(|fault| fault.line);
    Err(ConfigError::Faults { path: path.to_owned(), faults: checker.faults })
}

/// What the parser says, in the words of the file instead of the program's.
fn plainly(message: &str) -> String {
    let (said, expected) = message.rsplit_once("expected ").unwrap_or((message, ""));
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number without quotes that is not negative or too large",
        "a string" => "a text in quotes",
        "a boolean" => "true or false",
        "a sequence" => "a list, or a table with two brackets as in `[[agent]]`",
        _ if expected.starts_with("struct ") => "a table, such as `[daemon]`",
        other => other,
    };
    if expected.is_empty() { message.to_owned() } else { format!("{said}expected {expected}") }
}

struct Checker<'a> {
    text: &'a str,
    /// The names of all, for those who refer to one.
    issuers: HashSet<String>,
    faults: Vec<Fault>,
}

/// Where a table stands, for its faults.
struct Place {
    line: usize,
    table: String,
}

impl Place {
    fn section(table: &str) -> Self {
        Self { line: 0, table: table.to_owned() }
    }
}

impl Checker<'_> {
    fn fault(&mut self, place: &Place, key: &str, message: impl Into<String>) {
        let line = line_of_key(self.text, place, key).unwrap_or(place.line);
        let key = if key.is_empty() { place.table.clone() } else { format!("{}.{key}", place.table) };
        self.faults.push(Fault { line, key, message: message.into() });
    }

    fn place<T>(&self, kind: &str, name: &str, spanned: &Spanned<T>) -> Place {
        Place { line: line_of(self.text, spanned.span().start), table: format!("{kind} \"{}\"", name.escape_debug()) }
    }

    fn daemon(&mut self, raw: raw::Daemon) -> Daemon {
        let place = Place::section("daemon");
        let scope = self.cgroup(&place, "scope", raw.scope.unwrap_or_else(|| "/".into()));
        let cgroup = self.cgroup(&place, "cgroup", raw.cgroup.unwrap_or_else(|| "/weir".into()));
        if cgroup == "/" || !lies_below(&cgroup, &scope) {
            self.fault(&place, "cgroup", format!("`{cgroup}` must lie below the scope `{scope}`, and not be the root"));
        }
        let guard = match raw.guard.as_ref().map(|guard| (guard.get_ref().as_str(), guard.span())) {
            None | Some(("host", _)) => Guard::Host,
            Some(("agents", _)) => Guard::Agents,
            Some((other, span)) => {
                let place = Place { line: line_of(self.text, span.start), ..Place::section("daemon") };
                self.fault(
                    &place,
                    "guard",
                    format!("`{}` is not a guard; use `host` or `agents`", other.escape_debug()),
                );
                Guard::Host
            }
        };
        let listener_port = raw.listener_port.unwrap_or(943);
        if listener_port == 0 {
            self.fault(&place, "listener_port", "0 is no port; use a free one below 1024, such as 943");
        }
        let workers = raw.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, Into::into));
        if !(1..=256).contains(&workers) {
            self.fault(&place, "workers", format!("{workers} is outside 1..=256"));
        }
        Daemon {
            state_dir: self.absolute(&place, "state_dir", raw.state_dir, "/var/lib/weir"),
            runtime_dir: self.absolute(&place, "runtime_dir", raw.runtime_dir, "/run/weir"),
            homes: self.absolute(&place, "homes", raw.homes, "/var/lib/weir-homes"),
            scope,
            cgroup,
            pins: self.absolute(&place, "pins", raw.pins, "/sys/fs/bpf/weir"),
            listener_port,
            guard,
            policies: self.absolute(&place, "policies", raw.policies, "/etc/weir/policies"),
            workers,
            auditors: raw.auditors.unwrap_or_default().into_iter().map(Spanned::into_inner).collect(),
            refusal_hint: raw
                .refusal_hint
                .unwrap_or_else(|| "ask whoever keeps this host's Weir policies for a permit".to_owned()),
        }
    }

    fn store(&mut self, raw: raw::Store) -> Store {
        let place = Place::section("store");
        let window_bytes = raw.window_bytes.unwrap_or(512 << 20);
        if window_bytes < 1 << 20 {
            self.fault(&place, "window_bytes", format!("{window_bytes} is too small; use at least 1048576 (1 MiB)"));
        }
        Store {
            dir: self.absolute(&place, "dir", raw.dir, "/var/lib/weir/record"),
            window_bytes,
            answer_bytes: raw.answer_bytes.unwrap_or(1 << 30),
        }
    }

    fn issuer(&mut self, raw: Spanned<raw::Issuer>) -> Option<Issuer> {
        let place = self.place("issuer", &raw.get_ref().name, &raw);
        let raw = raw.into_inner();
        self.name(&place, &raw.name);
        if raw.audience.is_empty() {
            self.fault(&place, "audience", "is empty; name the audience that tokens for this host carry");
        }
        if raw.algorithms.is_empty() {
            self.fault(&place, "algorithms", "is empty; name what the provider signs with, such as [\"RS256\"]");
        }
        for algorithm in &raw.algorithms {
            if !ALGORITHMS.contains(&algorithm.as_str()) {
                let known = ALGORITHMS.join(", ");
                self.fault(
                    &place,
                    "algorithms",
                    format!("`{}` is not accepted; use {known}", algorithm.escape_debug()),
                );
            }
        }
        for pointer in &raw.groups {
            if !pointer.starts_with('/') {
                let shown = pointer.escape_debug();
                self.fault(&place, "groups", format!("`{shown}` is no JSON pointer; it starts with `/`, as `/groups`"));
            }
        }
        let leeway = self.duration(&place, "leeway", raw.leeway.as_deref(), Duration::from_secs(30));
        if leeway > Duration::from_secs(300) {
            self.fault(&place, "leeway", "is over 5 minutes, which would keep expired tokens alive; mend the clocks");
        }
        for (key, values) in [("types", &raw.types), ("authorized_parties", &raw.authorized_parties)] {
            if values.iter().any(String::is_empty) {
                self.fault(&place, key, "has an empty value, which no token could have");
            }
        }
        if raw.jwks_file.is_some() && raw.ca_file.is_some() {
            self.fault(&place, "ca_file", "is never used beside `jwks_file`: the provider is not asked; leave one out");
        }
        let max_lifetime = self.duration(&place, "max_lifetime", raw.max_lifetime.as_deref(), DAY);
        let max_age = raw.max_age.as_deref().map(|text| self.duration(&place, "max_age", Some(text), DAY));
        for (key, limit) in [("max_lifetime", Some(max_lifetime)), ("max_age", max_age)] {
            if limit.is_some_and(|limit| limit.is_zero()) {
                self.fault(&place, key, "is zero, so that no token would ever pass");
            }
        }
        Some(Issuer {
            jwks_file: raw.jwks_file.map(|path| self.absolute(&place, "jwks_file", Some(path), "")),
            types: raw.types,
            authorized_parties: raw.authorized_parties,
            max_lifetime,
            max_age,
            stale: self.duration(&place, "stale", raw.stale.as_deref(), DAY),
            leeway,
            name: raw.name,
            issuer: raw.issuer,
            audience: raw.audience,
            algorithms: raw.algorithms,
            groups: raw.groups,
            ca_file: raw.ca_file,
        })
    }

    fn agent(&mut self, raw: Spanned<raw::Agent>) -> Agent {
        let place = self.place("agent", &raw.get_ref().name, &raw);
        let raw = raw.into_inner();
        self.name(&place, &raw.name);
        let runs_as = self.runs_as(&place, raw.user, raw.uid_pool.as_deref());
        if !self.issuers.contains(&raw.issuer) {
            let shown = raw.issuer.escape_debug();
            self.fault(&place, "issuer", format!("there is no [[issuer]] with the name `{shown}`"));
        }
        Agent {
            name: raw.name,
            // With a fault, nobody sees it.
            runs_as: runs_as.unwrap_or_else(|| RunsAs::User(String::new())),
            issuer: raw.issuer,
            subject: raw.subject,
            starters: raw.starters,
            token_file: raw.token_file,
        }
    }

    fn runs_as(&mut self, place: &Place, user: Option<String>, pool: Option<&str>) -> Option<RunsAs> {
        match (user, pool) {
            (Some(user), None) => {
                if user == "root" || user == "0" {
                    self.fault(place, "user", "an agent must not run as root; make a user of its own (useradd -r)");
                }
                Some(RunsAs::User(user))
            }
            (None, Some(pool)) => match pool.parse() {
                Ok(pool) => Some(RunsAs::Pool(pool)),
                Err(fault) => {
                    self.fault(place, "uid_pool", fault);
                    None
                }
            },
            (Some(_), Some(_)) => {
                self.fault(place, "uid_pool", "stands beside `user`; name one: a user for all runs, or a uid for each");
                None
            }
            (None, None) => {
                self.fault(place, "user", "is missing; name a user of the agent's own, or a `uid_pool`");
                None
            }
        }
    }

    fn connection(&mut self, raw: Spanned<raw::Connection>) -> Option<Connection> {
        let place = self.place("connection", &raw.get_ref().name, &raw);
        let raw = raw.into_inner();
        self.name(&place, &raw.name);
        if raw.protocol != "postgres" {
            let shown = raw.protocol.escape_debug();
            self.fault(&place, "protocol", format!("`{shown}` is not spoken by this version; use `postgres`"));
        }
        if raw.host.is_empty() || raw.host.contains('/') {
            self.fault(&place, "host", "must be a host name or an address; Unix sockets go to `unix_sockets`");
        }
        let port = raw.port.unwrap_or(5432);
        if port == 0 {
            self.fault(&place, "port", "0 is no port");
        }
        let tls = match raw.tls.as_deref() {
            None | Some("verify-full") => UpstreamTls::VerifyFull,
            Some("verify-ca") => UpstreamTls::VerifyCa,
            Some("require") => UpstreamTls::Require,
            Some("disable") => UpstreamTls::Disable,
            Some(other) => {
                let shown = other.escape_debug();
                let modes = "`verify-full`, `verify-ca`, `require` or `disable`";
                self.fault(&place, "tls", format!("`{shown}` is no mode; use {modes}"));
                UpstreamTls::VerifyFull
            }
        };
        let require_channel_binding = match raw.channel_binding.as_deref() {
            None | Some("prefer") => false,
            Some("require") => true,
            Some(other) => {
                self.fault(&place, "channel_binding", format!("`{}`: use `prefer` or `require`", other.escape_debug()));
                true
            }
        };
        if let Some(Err(error)) = raw.password.as_ref().map(crate::secret::SecretRef::check) {
            self.fault(&place, "password", error.to_string());
        }
        let mut targets = Vec::new();
        for target in &raw.targets {
            match target.parse() {
                Ok(network) => targets.push(network),
                Err(error) => self.fault(&place, "targets", error),
            }
        }
        Some(Connection {
            linger: self.duration(&place, "linger", raw.linger.as_deref(), Duration::from_secs(24 * 3600)),
            name: raw.name,
            host: raw.host,
            port,
            targets,
            database: raw.database,
            user: raw.user,
            accept_users: raw.accept_users,
            password: raw.password,
            tls,
            ca_file: raw.ca_file,
            require_channel_binding,
            unix_sockets: raw.unix_sockets,
        })
    }

    fn protect(&mut self, raw: Spanned<raw::Protect>) -> Option<Protect> {
        let place = self.place("protect", &raw.get_ref().address, &raw);
        let raw = raw.into_inner();
        self.reason(&place, &raw.reason);
        match raw.address.parse() {
            Ok(network) => Some(Protect { network, reason: raw.reason }),
            Err(error) => {
                self.fault(&place, "address", error);
                None
            }
        }
    }

    fn allow(&mut self, raw: Spanned<raw::Allow>) -> Option<Allow> {
        let place = self.place("allow", &raw.get_ref().reason, &raw);
        let raw = raw.into_inner();
        self.reason(&place, &raw.reason);
        let who = match (raw.uid, raw.cgroup) {
            (Some(uid), None) => Allowed::Uid(uid),
            (None, Some(cgroup)) => Allowed::Cgroup(self.cgroup(&place, "cgroup", cgroup)),
            (None, None) | (Some(_), Some(_)) => {
                self.fault(&place, "", "name exactly one of `uid` and `cgroup`");
                return None;
            }
        };
        if who == Allowed::Cgroup("/".into()) {
            self.fault(&place, "cgroup", "the root cgroup would let every process through");
        }
        Some(Allow { who, reason: raw.reason })
    }

    fn limits(&mut self, raw: &raw::Limits) -> Limits {
        let place = Place::section("limits");
        let mut size = |key: &str, value: Option<usize>, default: usize, least: usize, most: usize| {
            let value = value.unwrap_or(default);
            if !(least..=most).contains(&value) {
                self.fault(&place, key, format!("{value} is outside {least}..={most}"));
            }
            value
        };
        let message_bytes = size("message_bytes", raw.message_bytes, 64 << 20, 64 << 10, 1 << 30);
        let server_message_bytes = size("server_message_bytes", raw.server_message_bytes, 1 << 30, 64 << 10, 1 << 30);
        let statement_bytes =
            size("statement_bytes", raw.statement_bytes, 1 << 20, 1 << 10, crate::sql::MAX_TEXT_BYTES);
        let most = crate::sql::ReadLimits::default();
        let statement_nesting = size("statement_nesting", raw.statement_nesting, most.nesting, 8, most.nesting);
        let statement_tokens = size("statement_tokens", raw.statement_tokens, most.tokens, 64, most.tokens);
        let connections = size("connections", raw.connections, 2_000, 1, 100_000);
        let connections_per_agent = size("connections_per_agent", raw.connections_per_agent, 500, 1, 100_000);
        let pipeline = size("pipeline", raw.pipeline, 20_000, 16, 1_000_000);
        let prepared_statements = size("prepared_statements", raw.prepared_statements, 10_000, 1, 1_000_000);
        let idle = self.duration(&place, "idle", raw.idle.as_deref(), Duration::from_secs(12 * 3600));
        Limits {
            message_bytes,
            server_message_bytes,
            statement_bytes,
            statement_nesting,
            statement_tokens,
            startup: self.duration(&place, "startup", raw.startup.as_deref(), Duration::from_secs(30)),
            idle: (!idle.is_zero()).then_some(idle),
            connections,
            connections_per_agent,
            pipeline,
            prepared_statements,
        }
    }

    /// What can only be seen with all tables side by side.
    fn across(&mut self, config: &Config) {
        let twice = |kind: &str, names: Vec<&str>, faults: &mut Vec<Fault>| {
            let mut seen = HashSet::new();
            for name in names {
                if !seen.insert(name) {
                    let key = format!("{kind} \"{}\"", name.escape_debug());
                    faults.push(Fault { line: 0, key, message: "stands twice; each name is used once".into() });
                }
            }
        };
        twice("issuer", config.issuers.iter().map(|x| x.name.as_str()).collect(), &mut self.faults);
        twice("agent", config.agents.iter().map(|x| x.name.as_str()).collect(), &mut self.faults);
        twice("connection", config.connections.iter().map(|x| x.name.as_str()).collect(), &mut self.faults);
        self.pools(config);
        let mut servers = HashSet::new();
        for connection in &config.connections {
            if !servers.insert((connection.host.to_ascii_lowercase(), connection.port)) {
                let place = Place::section(&format!("connection \"{}\"", connection.name.escape_debug()));
                self.fault(
                    &place,
                    "host",
                    "another connection has the same host and port; which is meant cannot be told",
                );
            }
        }
    }

    /// A uid of a pool is one agent's, and nobody who is let through.
    fn pools(&mut self, config: &Config) {
        let pools: Vec<(&str, &UidPool)> = config
            .agents
            .iter()
            .filter_map(|agent| match &agent.runs_as {
                RunsAs::Pool(pool) => Some((agent.name.as_str(), pool)),
                RunsAs::User(_) => None,
            })
            .collect();
        for (index, (name, pool)) in pools.iter().enumerate() {
            let place = Place::section(&format!("agent \"{}\"", name.escape_debug()));
            if let Some((other, _)) = pools.iter().take(index).find(|(_, other)| pool.overlaps(&other.range())) {
                let message =
                    format!("has uids that agent \"{}\" has as well; give each its own", other.escape_debug());
                self.fault(&place, "uid_pool", message);
            }
            for allow in &config.allow {
                if let Allowed::Uid(uid) = allow.who
                    && pool.range().contains(&uid)
                {
                    self.fault(&place, "uid_pool", format!("has uid {uid}, which [[allow]] lets through; take others"));
                }
            }
        }
    }

    fn name(&mut self, place: &Place, name: &str) {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 63 || !name.chars().all(plain) || name.starts_with(['.', '-']) {
            self.fault(
                place,
                "name",
                "must be 1 to 63 letters, digits, `-`, `_` or `.`, and not start with `.` or `-`",
            );
        }
    }

    fn reason(&mut self, place: &Place, reason: &str) {
        if reason.trim().is_empty() {
            self.fault(place, "reason", "is empty; say why, for whoever reads `weir status`");
        }
    }

    fn cgroup(&mut self, place: &Place, key: &str, path: String) -> String {
        let odd = |part: &str| part.is_empty() || part == "." || part == "..";
        if path != "/" && (!path.starts_with('/') || path.split('/').skip(1).any(odd)) {
            let shown = path.escape_debug().to_string();
            self.fault(place, key, format!("`{shown}` is no cgroup path; it starts with `/` and has no `.` or `//`"));
        }
        path
    }

    fn absolute(&mut self, place: &Place, key: &str, path: Option<PathBuf>, default: &str) -> PathBuf {
        let path = path.unwrap_or_else(|| default.into());
        if !path.is_absolute() {
            self.fault(place, key, format!("`{}` must be an absolute path", path.display()));
        }
        path
    }

    fn duration(&mut self, place: &Place, key: &str, text: Option<&str>, default: Duration) -> Duration {
        let Some(text) = text else { return default };
        match jiff::SignedDuration::from_str(text).ok().and_then(|duration| Duration::try_from(duration).ok()) {
            Some(duration) => duration,
            None => {
                let shown = text.escape_debug().to_string();
                self.fault(place, key, format!("`{shown}` is no duration; write it as `30s`, `5m` or `24h`"));
                default
            }
        }
    }
}

/// Whether a cgroup lies below another, as their paths say.
pub(crate) fn lies_below(path: &str, scope: &str) -> bool {
    scope == "/" || path.strip_prefix(scope).is_some_and(|rest| rest.starts_with('/'))
}

/// The line of a key of the table at `place`; of `[table]`'s where the table's own line is not known. For people: a key in
/// a string of several lines, or written another way, leaves the table's line.
fn line_of_key(text: &str, place: &Place, key: &str) -> Option<usize> {
    let header = format!("[{}]", place.table);
    let start = match place.line {
        0 => text.lines().position(|line| line.trim_start().starts_with(&header))?,
        line => line.saturating_sub(1),
    };
    let own = text
        .lines()
        .enumerate()
        .skip(start.saturating_add(1))
        .take_while(|(_, line)| !line.trim_start().starts_with('['));
    let is_key =
        |line: &str| line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='));
    let found = own.into_iter().find(|(_, line)| is_key(line)).map(|(number, _)| number.saturating_add(1));
    found.or((place.line == 0).then_some(start.saturating_add(1)))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}
