//! From what is written to what is used: each table becomes its checked type, or faults.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use toml::Spanned;

use super::{
    Agent, Allow, Allowed, Config, ConfigError, Connection, Daemon, Fault, Guard, Issuer, Mode, Protect, RunsAs,
    SessionAttributes, Store, UpstreamTls, raw,
    tree::{Misfit, Tree, line_of},
    words::nearest,
};
use crate::{limits::AgentLimits, secret::SecretRef};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The algorithms that a token may be signed with: asymmetric ones alone.
const ALGORITHMS: [&str; 5] = ["RS256", "PS256", "ES256", "ES384", "EdDSA"];
/// Those that many providers offer beside them.
const SYMMETRIC: [&str; 3] = ["HS256", "HS384", "HS512"];

// The words of keys that have a few.
const GUARDS: [(&str, Guard); 2] = [("host", Guard::Host), ("agents", Guard::Agents)];
const MODES: [(&str, Mode); 2] = [("enforce", Mode::Enforce), ("observe", Mode::Observe)];
const CHANNEL_BINDINGS: [(&str, bool); 2] = [("prefer", false), ("require", true)];
const TLS_MODES: [(&str, UpstreamTls); 4] = [
    ("verify-full", UpstreamTls::VerifyFull),
    ("verify-ca", UpstreamTls::VerifyCa),
    ("require", UpstreamTls::Require),
    ("disable", UpstreamTls::Disable),
];
const SESSION_ATTRIBUTES: [(&str, SessionAttributes); 6] = [
    ("any", SessionAttributes::Any),
    ("read-write", SessionAttributes::ReadWrite),
    ("read-only", SessionAttributes::ReadOnly),
    ("primary", SessionAttributes::Primary),
    ("standby", SessionAttributes::Standby),
    ("prefer-standby", SessionAttributes::PreferStandby),
];

pub(super) fn check(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let failed = |mut faults: Vec<Fault>| {
        faults.sort_by_key(|fault| fault.line);
        ConfigError::Faults { path: path.to_owned(), faults }
    };
    let tree = Tree::parse(text).map_err(|fault| failed(vec![fault]))?;
    let (root, misfits) = tree.read();
    let Some(root) = root else {
        return Err(failed(misfits.into_iter().filter_map(Misfit::told).collect()));
    };
    let mut checker = Checker { text, tree: &tree, misfits, faults: Vec::new() };
    let limits = checker.limits(&root.limits);
    let config = Config {
        path: path.to_owned(),
        daemon: checker.daemon(root.daemon),
        store: checker.store(root.store),
        issuers: root.issuer.into_iter().filter_map(|issuer| checker.issuer(issuer)).collect(),
        agents: root.agent.into_iter().map(|agent| checker.agent(agent, limits.agent)).collect(),
        connections: root.connection.into_iter().filter_map(|connection| checker.connection(connection)).collect(),
        protect: root.protect.into_iter().filter_map(|protect| checker.protect(protect)).collect(),
        allow: root.allow.into_iter().filter_map(|allow| checker.allow(allow)).collect(),
        limits,
        lines: tree.lines(),
    };
    checker.across(&config);
    let Checker { misfits, faults, .. } = checker;
    let faults: Vec<Fault> = misfits.into_iter().filter_map(Misfit::told).chain(faults).collect();
    if faults.is_empty() { Ok(config) } else { Err(failed(faults)) }
}

pub(super) struct Checker<'a> {
    text: &'a str,
    pub(super) tree: &'a Tree<'a>,
    /// What is told already: nothing more is said of those keys.
    misfits: Vec<Misfit>,
    pub(super) faults: Vec<Fault>,
}

/// Where a table stands, for its faults.
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) table: String,
}

impl Place {
    pub(super) fn section(table: &str) -> Self {
        Self { line: 0, table: table.to_owned() }
    }
}

impl Checker<'_> {
    pub(super) fn fault(&mut self, place: &Place, key: &str, message: impl Into<String>) {
        self.fault_in(place, key, None, message);
    }

    /// A fault of the item `nth` of a list.
    pub(super) fn fault_in(&mut self, place: &Place, key: &str, nth: Option<usize>, message: impl Into<String>) {
        if self.misfits.iter().any(|misfit| misfit.is_about(&place.table, key)) {
            return;
        }
        let is_it = |label: &str, line: usize| if place.line == 0 { label == place.table } else { line == place.line };
        let found = self.tree.tables().find(|(label, line, _)| is_it(label, *line));
        let line = found.map_or(place.line, |(_, line, table)| self.tree.line_of_key(table, key, nth).unwrap_or(line));
        let key = if key.is_empty() { place.table.clone() } else { format!("{}.{key}", place.table) };
        self.faults.push(Fault { line, key, message: message.into() });
    }

    /// One of the words that a key may have, or the default where it is left out. `why_not` is said of any other.
    pub(super) fn choice<T: Copy>(
        &mut self,
        place: &Place,
        key: &str,
        word: Option<&str>,
        (default, choices): (T, &[(&str, T)]),
        why_not: &str,
    ) -> T {
        let Some(word) = word else { return default };
        if let Some((_, choice)) = choices.iter().find(|(known, _)| *known == word) {
            return *choice;
        }
        let words: Vec<String> = choices.iter().map(|(known, _)| format!("`{known}`")).collect();
        let words = match words.as_slice() {
            [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
            few => few.join(""),
        };
        self.fault(place, key, format!("`{}` {why_not}; use {words}", word.escape_debug()));
        default
    }

    fn place<T>(&self, kind: &str, name: &str, spanned: &Spanned<T>) -> Place {
        let table = if name.is_empty() { format!("[[{kind}]]") } else { format!("{kind} \"{}\"", name.escape_debug()) };
        Place { line: line_of(self.text, spanned.span().start), table }
    }

    fn daemon(&mut self, raw: raw::Daemon) -> Daemon {
        let place = Place::section("daemon");
        let scope = self.cgroup(&place, "scope", raw.scope.unwrap_or_else(|| "/".into()));
        let cgroup = self.cgroup(&place, "cgroup", raw.cgroup.unwrap_or_else(|| "/weir".into()));
        if cgroup == "/" || !lies_below(&cgroup, &scope) {
            self.fault(&place, "cgroup", format!("`{cgroup}` must lie below the scope `{scope}`, and not be the root"));
        }
        let guard = self.choice(&place, "guard", raw.guard.as_deref(), (Guard::Host, &GUARDS), "is no guard");
        let listener_port = raw.listener_port.unwrap_or(943);
        if listener_port == 0 {
            self.fault(&place, "listener_port", "0 is no port; use a free one below 1024, such as 943");
        }
        let workers = raw.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, Into::into));
        if !(1..=256).contains(&workers) {
            self.fault(&place, "workers", format!("{workers} is out of range; use 1 to 256, or leave it out"));
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
        if let Err(error) = crate::identity::issuer::check_url(&raw.issuer) {
            let message =
                format!("{error}; write it as its tokens have it in `iss`, such as `https://idp.example.com`");
            self.fault(&place, "issuer", message);
        }
        if raw.audience.is_empty() {
            self.fault(&place, "audience", "is empty; name the audience that tokens for this host carry");
        }
        if raw.algorithms.is_empty() {
            self.fault(&place, "algorithms", "is empty; name what the provider signs with, such as [\"RS256\"]");
        }
        for (nth, algorithm) in raw.algorithms.iter().enumerate() {
            if !ALGORITHMS.contains(&algorithm.as_str()) {
                let (shown, known) = (algorithm.escape_debug(), ALGORITHMS.join(", "));
                let why = if SYMMETRIC.contains(&algorithm.as_str()) {
                    " (whoever can check such a token can make one)"
                } else {
                    ""
                };
                self.fault_in(&place, "algorithms", Some(nth), format!("`{shown}` is not accepted{why}; use {known}"));
            }
        }
        for (nth, pointer) in raw.groups.iter().enumerate() {
            if !pointer.starts_with('/') {
                let shown = pointer.escape_debug();
                let message = format!("`{shown}` is no JSON pointer; it starts with `/`, as `/groups`");
                self.fault_in(&place, "groups", Some(nth), message);
            }
        }
        let leeway = self.duration(&place, "leeway", raw.leeway.as_deref(), Duration::from_secs(30));
        if leeway > Duration::from_secs(300) {
            self.fault(&place, "leeway", "is over 5 minutes, which would keep expired tokens alive; mend the clocks");
        }
        for (key, values) in [("types", &raw.types), ("authorized_parties", &raw.authorized_parties)] {
            if values.iter().any(String::is_empty) {
                self.fault(&place, key, "has an empty value, which no token could have; take it out");
            }
        }
        self.file(&place, "ca_file", raw.ca_file.as_deref());
        if raw.jwks_file.is_some() && raw.ca_file.is_some() {
            self.fault(&place, "ca_file", "is never used beside `jwks_file`: the provider is not asked; leave one out");
        }
        let max_lifetime = self.duration(&place, "max_lifetime", raw.max_lifetime.as_deref(), DAY);
        let max_age = raw.max_age.as_deref().map(|text| self.duration(&place, "max_age", Some(text), DAY));
        for (key, limit) in [("max_lifetime", Some(max_lifetime)), ("max_age", max_age)] {
            if limit.is_some_and(|limit| limit.is_zero()) {
                self.fault(&place, key, "is zero, so that no token would ever pass; leave it out, or write it as `1h`");
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

    fn agent(&mut self, raw: Spanned<raw::Agent>, limits: AgentLimits) -> Agent {
        let place = self.place("agent", &raw.get_ref().name, &raw);
        let raw = raw.into_inner();
        self.name(&place, &raw.name);
        let runs_as = self.runs_as(&place, raw.user, raw.uid_pool.as_deref());
        self.file(&place, "token_file", raw.token_file.as_deref());
        let issuers = self.tree.names("issuer");
        if issuers.iter().all(|(name, _)| *name != raw.issuer) {
            let known: Vec<&str> = issuers.iter().map(|(name, _)| name.as_str()).collect();
            let mend = match nearest(&raw.issuer, &known) {
                Some(near) => format!("did you mean `{}`?", near.escape_debug()),
                None if known.is_empty() => "declare one".to_owned(),
                None => format!("there are {}", known.join(", ").escape_debug()),
            };
            let shown = raw.issuer.escape_debug();
            self.fault(&place, "issuer", format!("there is no [[issuer]] with the name `{shown}`; {mend}"));
        }
        let egress = self.egress(&place, raw.egress.as_deref(), raw.egress_allow);
        let limits = self.agent_limits(&place, &raw.limits, limits);
        Agent {
            egress,
            limits,
            name: raw.name,
            // With a fault, nobody sees it.
            runs_as: runs_as.unwrap_or_else(|| RunsAs::User(String::new())),
            issuer: raw.issuer,
            subject: raw.subject,
            starters: raw.starters,
            token_file: raw.token_file,
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
        let hosts = self.hosts(&place, raw.host, &raw.hosts, raw.port);
        let states = (SessionAttributes::Any, SESSION_ATTRIBUTES.as_slice());
        let attributes = raw.target_session_attrs.as_deref();
        let attributes = self.choice(&place, "target_session_attrs", attributes, states, "is no server's state");
        self.not_empty(&place, "user", &raw.user, "name the server's role that Weir logs in as");
        if let Some(database) = &raw.database {
            self.not_empty(&place, "database", database, "leave it out for any database");
        }
        let why_not = match raw.tls.as_deref() {
            Some("prefer" | "allow") => "would go on in the clear where the server has no TLS",
            _ => "is no mode",
        };
        let tls = self.choice(&place, "tls", raw.tls.as_deref(), (UpstreamTls::VerifyFull, &TLS_MODES), why_not);
        let channel_binding = raw.channel_binding.as_deref();
        let require_channel_binding =
            self.choice(&place, "channel_binding", channel_binding, (false, &CHANNEL_BINDINGS), "is no mode");
        let mode = self.choice(&place, "mode", raw.mode.as_deref(), (Mode::Enforce, &MODES), "is no mode");
        self.password(&place, raw.password.as_ref());
        self.file(&place, "ca_file", raw.ca_file.as_deref());
        for (nth, socket) in raw.unix_sockets.iter().flatten().enumerate() {
            if !socket.is_absolute() {
                self.fault_in(&place, "unix_sockets", Some(nth), not_absolute(socket));
            }
        }
        let mut targets = Vec::new();
        for (nth, target) in raw.targets.iter().enumerate() {
            match target.parse() {
                Ok(network) => targets.push(network),
                Err(error) => self.fault_in(&place, "targets", Some(nth), error),
            }
        }
        Some(Connection {
            linger: self.duration(&place, "linger", raw.linger.as_deref(), Duration::from_secs(24 * 3600)),
            name: raw.name,
            hosts,
            attributes,
            targets,
            database: raw.database,
            user: raw.user,
            accept_users: raw.accept_users,
            password: raw.password,
            tls,
            client_certificate: self.client_certificate(&place, raw.client_cert_file, raw.client_key_file, tls),
            ca_file: raw.ca_file,
            require_channel_binding,
            identity_parameters: raw.identity_parameters,
            unix_sockets: raw.unix_sockets,
            mode,
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
            (None, None) => {
                self.fault(&place, "", "lets nobody through; name a `uid`, or a `cgroup`");
                return None;
            }
            (Some(_), Some(_)) => {
                self.fault(
                    &place,
                    "cgroup",
                    "stands beside `uid`; name one of them, and the other in an [[allow]] of its own",
                );
                return None;
            }
        };
        if who == Allowed::Cgroup("/".into()) {
            self.fault(
                &place,
                "cgroup",
                "the root cgroup would let every process through; name a service's, or a slice",
            );
        }
        Some(Allow { who, reason: raw.reason })
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

    pub(super) fn reason(&mut self, place: &Place, reason: &str) {
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

    /// Nothing that stands here is quoted: it may be the secret itself.
    fn password(&mut self, place: &Place, password: Option<&SecretRef>) {
        let (key, message) = match password {
            Some(SecretRef::File(path)) if !path.is_absolute() => {
                ("password.file", "must be an absolute path, one that begins with `/`")
            }
            Some(SecretRef::Credential(_)) => (
                "password.credential",
                "must be a name of systemd's `LoadCredential=`, without `/`, and neither `.` nor `..`",
            ),
            Some(SecretRef::Command(_)) => {
                ("password.command", "must begin with a program's absolute path, as [\"/usr/bin/vault\", \"read\"]")
            }
            Some(SecretRef::File(_) | SecretRef::Env(_)) | None => return,
        };
        let is_well = |reference: &SecretRef| !matches!(reference, SecretRef::File(_)) && reference.check().is_ok();
        if !password.is_some_and(is_well) {
            self.fault(place, key, message);
        }
    }

    pub(super) fn not_empty(&mut self, place: &Place, key: &str, value: &str, mend: &str) {
        if value.is_empty() {
            self.fault(place, key, format!("is empty; {mend}"));
        }
    }

    fn file(&mut self, place: &Place, key: &str, path: Option<&Path>) {
        if let Some(path) = path.filter(|path| !path.is_absolute()) {
            self.fault(place, key, not_absolute(path));
        }
    }

    pub(super) fn absolute(&mut self, place: &Place, key: &str, path: Option<PathBuf>, default: &str) -> PathBuf {
        let path = path.unwrap_or_else(|| default.into());
        self.file(place, key, Some(&path));
        path
    }

    pub(super) fn duration(&mut self, place: &Place, key: &str, text: Option<&str>, default: Duration) -> Duration {
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

fn not_absolute(path: &Path) -> String {
    format!("`{}` must be an absolute path, one that begins with `/`", path.display().to_string().escape_debug())
}
