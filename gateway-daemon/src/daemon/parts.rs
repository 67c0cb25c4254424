//! The daemon's start: each part in the order in which nothing is open that should not be.

use std::{fs, os::unix::fs::PermissionsExt};

use arc_swap::ArcSwap;
use aws_lc_rs::{hmac, rand};
use tokio::task::spawn_blocking;

use super::*;
use crate::{
    config::{Guard, RunsAs},
    control::BindError,
    identity::{
        issuer::{IssuerSettings, SettingsError},
        token::{Algorithm, TokenSettings},
    },
    limits::Accounts,
    protocol::postgres::{
        cancels::Cancels,
        machine::MachineLimits,
        tls::{DeclaredNames, ServerNameEntry, bundle},
        upstream::{ClientCertificate, TlsSettingsError},
    },
    record::StoreSettings,
    redirect::{Protected, RedirectSettings},
    secret::SecretRef,
    sql::{CacheLimits, ReadLimits, ReadingCache},
};

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The runtime or its signals.
    #[error("the runtime cannot be started: {source}")]
    Runtime {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The launcher.
    #[error("the launcher cannot be reached: {source}")]
    Launcher {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A folder or file of the daemon's own.
    #[error("`{path}`: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The policies have faults.
    #[error("the policies cannot be used:\n{faults}")]
    Policies {
        /// All of them.
        faults: String,
    },
    /// An issuer's settings.
    #[error("issuer `{name}`: {source}")]
    Issuer {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: SettingsError,
    },
    /// A connection's TLS.
    #[error("connection `{name}`: {source}")]
    Tls {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: TlsSettingsError,
    },
    /// A name cannot be resolved at the start: what is not known cannot be protected.
    #[error("the addresses of a connection are not known:\n{failures}")]
    Names {
        /// Each.
        failures: String,
    },
    /// An agent's user does not exist.
    #[error("agent `{agent}`: the {user} does not exist; make it with `useradd -r`")]
    NoUser {
        /// The agent.
        agent: String,
        /// Its user.
        user: String,
    },
    /// An agent's pool has uids that are somebody's.
    #[error("agent `{agent}`: `uid_pool`: {fault}")]
    Pool {
        /// The agent.
        agent: String,
        /// What is wrong.
        fault: String,
    },
    /// The slices of agents that a service manager starts.
    #[error("an agent's slice cannot be kept: {0}")]
    Slice(#[from] slices::SliceError),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// The record.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry of runs.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The host CA.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The programs.
    #[error("{0}")]
    Redirect(#[from] RedirectError),
    /// The listener.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] BindError),
}

pub(super) async fn assemble(
    config: Config,
    options: Options,
    launcher: LauncherProcess,
) -> Result<(Arc<Weir>, targets::Resolved), StartError> {
    let launcher = launcher.connect().map_err(|source| StartError::Launcher { source })?;
    make_folder(&config.daemon.state_dir, 0o700)?;
    make_folder(&config.daemon.runtime_dir, 0o755)?;
    let homes = Arc::new(homes::Homes::new(&config.daemon.homes));
    if config.agents.iter().any(|agent| matches!(agent.runs_as, RunsAs::Pool(_))) {
        let path = config.daemon.homes.clone();
        homes::Homes::prepare(&path).map_err(|source| StartError::File { path, source })?;
    }
    let policies = Arc::new(Policies::new(load_policies(&config)?));
    warn_of_unknown_users(&config);
    warn_of_credentials(&config).await;
    let issuers = config.issuers.iter().map(issuer).collect::<Result<Vec<_>, _>>()?;
    let agents = config.agents.iter().map(|agent| (agent.name.as_str(), agent.limits));
    let accounts = Arc::new(Accounts::new(agents));
    let recorder = open_record(&config, options.recording, &accounts).await?;
    let registry = Registry::open(&config.daemon.state_dir)?;
    let ca = Arc::new(HostCa::open_or_create(&config.daemon.state_dir.join("ca"), declared_names(&config))?);
    write_certificates(&config, &ca)?;
    let mut resolved = targets::Resolved::default();
    resolved.refresh(&config).await;
    if !resolved.failed.is_empty() {
        return Err(StartError::Names { failures: resolved.failed.join("\n") });
    }
    let cgroups = CgroupRoot::find()?;
    let own = enter_cgroup(&config, &cgroups)?;
    let protected = resolved.protected(&config);
    let kernel = Arc::new(start_kernel(&config, &cgroups, own, &protected, &registry)?);
    // What an earlier daemon protected may carry the index of another connection: gone before anyone is listened to.
    kernel.set_protected(&protected)?;
    let slices = slices::Slices::of(&config);
    forget_ended_runs(&cgroups, &kernel, &slices)?;
    slices.prepare(&cgroups, &kernel, &config)?;
    let targets = config.connections.iter().map(servers::target).collect::<Result<Vec<_>, _>>()?;
    let sessions = Sessions::new(config.limits.connections);
    let front = Arc::new(Front {
        recorder: recorder.clone(),
        policies: policies.clone(),
        cache: Arc::new(ReadingCache::new(CacheLimits::default(), read_limits(&config.limits))),
        accounts,
        sessions: sessions.clone(),
        cancels: Arc::new(Cancels::default()),
        ca: ca.clone(),
        limits: machine_limits(&config),
        startup_deadline: config.limits.startup,
        idle: config.limits.idle,
        hint: config.daemon.refusal_hint.as_str().into(),
        secrets: Arc::new(secrets_key(&config.daemon.state_dir.join("record.key"))?),
    });
    let weir = Weir {
        config: Arc::new(config),
        options,
        started: SystemTime::now(),
        cgroups,
        kernel,
        protected: Arc::new(ArcSwap::from_pointee(protected)),
        recorder,
        policies,
        issuers,
        registry,
        sessions,
        ca,
        targets,
        front,
        launcher,
        homes,
        slices,
        often: often::Often::default(),
        stopping: AtomicBool::new(false),
    };
    weir.judge_sockets();
    weir.say_what_is_unsafe();
    Ok((Arc::new(weir), resolved))
}

/// A user who does not exist yet may be made later; one who is misspelt waits for rights in vain.
fn warn_of_unknown_users(config: &Config) {
    let auditors = config.daemon.auditors.iter().map(|user| ("daemon.auditors".to_owned(), user));
    let starters = config
        .agents
        .iter()
        .flat_map(|agent| agent.starters.iter().map(|user| (format!("starters of agent {}", agent.name), user)));
    for (key, user) in auditors.chain(starters) {
        if let Ok(None) = nix::unistd::User::from_name(user) {
            tracing::warn!(%key, %user, "the configuration names a user who does not exist");
        }
    }
}

/// Agents are refused while a credential cannot be had. Commands are not run for this: they may take long.
async fn warn_of_credentials(config: &Config) {
    for connection in &config.connections {
        if let Some((certificate, key)) = connection.client_certificate.clone()
            && let Err(error) = Arc::new(ClientCertificate::new(certificate, key)).refresh().await
        {
            let error: &dyn std::error::Error = &*error;
            tracing::warn!(connection = %connection.name, error, "the connection's client certificate cannot be used");
        }
        let Some(reference) = &connection.password else { continue };
        match reference {
            SecretRef::File(_) | SecretRef::Env(_) | SecretRef::Credential(_) => {
                if let Err(error) = reference.resolve().await {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(connection = %connection.name, error, "the connection's password cannot be had");
                }
            }
            SecretRef::Command(_) => {}
        }
    }
}

impl Weir {
    fn say_what_is_unsafe(&self) {
        if self.options.recording == Recording::UnsafeOff {
            tracing::warn!("--unsafe-no-record: NOTHING IS RECORDED; use it to measure, never to serve");
        }
        if self.config.daemon.scope != "/" {
            tracing::warn!(
                scope = %self.config.daemon.scope,
                "the scope is not the root: sockets made outside of it are not caught"
            );
        }
        for connection in self.config.observed() {
            tracing::warn!(
                connection.id = connection,
                "THE CONNECTION ONLY OBSERVES (mode = \"observe\"): what the policies deny is let pass, and recorded as denied"
            );
        }
        egress::warn(&self.config);
        if self.options.port == PortKeeping::ProgramsAlone {
            tracing::warn!("the listener's port is not privileged: the bind programs alone keep it");
        }
    }
}

fn load_policies(config: &Config) -> Result<PolicySet, StartError> {
    let dir = &config.daemon.policies;
    check_folder(dir).map_err(|faults| StartError::Policies { faults })?;
    let loaded = PolicySet::load(dir, Some(&known(config)));
    let loaded = loaded.map_err(|errors: LoadErrors| StartError::Policies { faults: errors.to_string() })?;
    for warning in &loaded.warnings {
        tracing::warn!("policy: {warning}");
    }
    Ok(loaded.set)
}

pub(super) fn issuer(issuer: &config::Issuer) -> Result<Arc<Issuer>, StartError> {
    let named = |source| StartError::Issuer { name: issuer.name.clone(), source };
    let algorithms = issuer.algorithms.iter().filter_map(|name| Algorithm::from_name(name)).collect();
    let token = TokenSettings {
        algorithms,
        groups: issuer.groups.clone(),
        leeway: issuer.leeway,
        max_lifetime: issuer.max_lifetime,
        max_age: issuer.max_age,
        types: issuer.types.clone(),
        authorized_parties: issuer.authorized_parties.clone(),
        ..TokenSettings::new(&issuer.name, &issuer.issuer, &issuer.audience)
    };
    let settings = IssuerSettings {
        ca_file: issuer.ca_file.clone(),
        jwks_file: issuer.jwks_file.clone(),
        stale_window: issuer.stale,
        ..IssuerSettings::new(token)
    };
    Issuer::new(settings).map(Arc::new).map_err(named)
}

async fn open_record(config: &Config, recording: Recording, accounts: &Arc<Accounts>) -> Result<Recorder, StartError> {
    if recording == Recording::UnsafeOff {
        return Ok(Recorder::without_record());
    }
    let mut settings = StoreSettings::new(&config.store.dir);
    settings.window_bytes = config.store.window_bytes;
    settings.accounts = accounts.clone();
    // Opening may repair a window after a crash.
    let opened = spawn_blocking(move || Recorder::open(settings)).await;
    let (recorder, findings) = opened.map_err(|_| StoreError::Closed)??;
    for finding in &findings {
        tracing::error!("the record: {}", finding.0);
    }
    Ok(recorder)
}

fn declared_names(config: &Config) -> DeclaredNames {
    let mut names = DeclaredNames::new();
    for connection in &config.connections {
        for name in connection.hosts.iter().filter_map(|host| host.name.parse::<ServerNameEntry>().ok()) {
            names.add(name);
        }
        for network in &connection.targets {
            if let Err(error) = names.add_network(network.address, network.prefix) {
                tracing::warn!(connection.id = %connection.name, %error, "TLS to this range is not offered to agents");
            }
        }
    }
    names
}

/// Puts the certificates where agents read them.
pub(super) fn write_certificates(config: &Config, ca: &HostCa) -> Result<(), StartError> {
    let view = ca.show();
    for (name, text) in [(CA_FILE, view.pem.clone()), (BUNDLE_FILE, bundle(&view))] {
        let path = config.daemon.runtime_dir.join(name);
        let fresh = path.with_extension("new");
        let written = fs::write(&fresh, text)
            .and_then(|()| fs::set_permissions(&fresh, fs::Permissions::from_mode(0o644)))
            .and_then(|()| fs::rename(&fresh, &path));
        written.map_err(|source| StartError::File { path, source })?;
    }
    Ok(())
}

/// Leaves the root cgroup: the daemon's own must lie below the scope, so that its sockets are seen, and be known from
/// those of others.
fn enter_cgroup(config: &Config, cgroups: &CgroupRoot) -> Result<CgroupId, StartError> {
    let own = format!("{}/daemon", config.daemon.cgroup);
    let now = cgroups.of_self().unwrap_or_else(|| "/".to_owned());
    let service = now != "/" && now != config.daemon.scope && config::lies_below(&now, &config.daemon.scope);
    // A service manager gave the daemon a cgroup of its own: nobody else's processes are in it.
    if service && now.ends_with(".service") {
        return Ok(cgroups.id(&now)?);
    }
    let id = cgroups.create(&own)?;
    cgroups.enter(&own)?;
    Ok(id)
}

fn start_kernel(
    config: &Config,
    cgroups: &CgroupRoot,
    daemon_cgroup: CgroupId,
    protected: &[Protected],
    registry: &Registry,
) -> Result<Kernel, StartError> {
    let mut agent_uids = Vec::new();
    for agent in &config.agents {
        if let RunsAs::Pool(pool) = &agent.runs_as
            && let Some(fault) = accounts::pool_fault(pool)
        {
            return Err(StartError::Pool { agent: agent.name.clone(), fault });
        }
        let no_user = || StartError::NoUser { agent: agent.name.clone(), user: agent.runs_as.to_string() };
        agent_uids.extend(accounts::uids(agent).ok_or_else(no_user)?);
    }
    let allowed_uids: Vec<u32> = config
        .allow
        .iter()
        .filter_map(|allow| match allow.who {
            config::Allowed::Uid(uid) => Some(uid),
            config::Allowed::Cgroup(_) => None,
        })
        .collect();
    let mut allowed_cgroups = Vec::new();
    for allow in &config.allow {
        if let config::Allowed::Cgroup(cgroup) = &allow.who {
            match cgroups.id(cgroup) {
                Ok(id) => allowed_cgroups.push(id),
                // Not there yet: refused until it is, and the daemon restarted.
                Err(error) => tracing::warn!(%error, "an allowed cgroup is not there; it is refused"),
            }
        }
    }
    Ok(Kernel::start(&RedirectSettings {
        scope: cgroups.path(&config.daemon.scope),
        pins: config.daemon.pins.clone(),
        listener_port: config.daemon.listener_port,
        guard: match config.daemon.guard {
            Guard::Host => crate::redirect::Guard::Host,
            Guard::Agents => crate::redirect::Guard::Agents,
        },
        protected: protected.to_vec(),
        allowed_uids,
        allowed_cgroups,
        agent_uids,
        daemon_cgroup,
        egress: egress::settings(config, registry),
    })?)
}

/// Forgets cgroups of runs whose processes are gone. Those that live stay agents, without an identity.
fn forget_ended_runs(cgroups: &CgroupRoot, kernel: &Kernel, slices: &slices::Slices) -> Result<(), StartError> {
    for id in kernel.enrolled()? {
        match cgroups.path_of(id) {
            Ok(Some(path)) if slices.is_own(&path) => {}
            Ok(Some(path)) if !cgroups.remove_if_empty(&path) => {}
            Ok(Some(_) | None) => kernel.unenrol(id)?,
            // It may live: then it must stay an agent's.
            Err(error) => tracing::warn!(%error, cgroup = id.get(), "whether a run lives cannot be told"),
        }
    }
    Ok(())
}

const fn read_limits(limits: &config::Limits) -> ReadLimits {
    ReadLimits { nesting: limits.statement_nesting, tokens: limits.statement_tokens }
}

fn machine_limits(config: &Config) -> MachineLimits {
    MachineLimits {
        message_bytes: config.limits.message_bytes,
        server_message_bytes: config.limits.server_message_bytes,
        statement_bytes: config.limits.statement_bytes,
        pipeline: config.limits.pipeline,
        names: config.limits.prepared_statements,
        answer_bytes: config.store.answer_bytes,
    }
}

/// The key of the digests that stand for secrets on the record: made once, so that equal secrets stay equal.
fn secrets_key(path: &Path) -> Result<hmac::Key, StartError> {
    let file = |source| StartError::File { path: path.to_owned(), source };
    let bytes = match fs::read(path) {
        Ok(bytes) if bytes.len() == KEY_BYTES => bytes,
        Ok(_) => {
            return Err(file(io::Error::new(io::ErrorKind::InvalidData, "is not a key of 32 bytes; move it away")));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = vec![0; KEY_BYTES];
            rand::fill(&mut bytes).map_err(|_| StartError::Random)?;
            use std::{io::Write, os::unix::fs::OpenOptionsExt};
            let mut made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(file)?;
            made.write_all(&bytes).and_then(|()| made.sync_all()).map_err(file)?;
            bytes
        }
        Err(error) => return Err(file(error)),
    };
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

const KEY_BYTES: usize = 32;

fn make_folder(path: &Path, mode: u32) -> Result<(), StartError> {
    let file = |source| StartError::File { path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(file)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(file)
}
