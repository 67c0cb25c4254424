//! `weir run`, on the daemon's side: who asks is checked, the token verified, the cgroup made, the run enrolled, and then the
//! launcher starts the command in it.

use std::{
    ffi::OsString,
    fs::File,
    io::Read,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::unistd::{Uid, User};
use secrecy::{SecretString, zeroize::Zeroizing};

use super::{
    Weir,
    accounts::{self, Account},
    often::Kind,
    slices,
};
use crate::{
    assign,
    config::{self, RunsAs},
    control::{Connection, Reply, RunRequest, Text},
    identity::{
        self, Enrolment, Identity, Run, RunId, Uids,
        token::MAX_TOKEN_LEN,
        watch::{NamedBy, TokenFile, Watch},
    },
    launch::{self, LaunchError, RunSpec, Terminal},
    record::{AdminEvent, Event},
    redirect::cgroup::CgroupId,
};

/// How often a token file is looked at.
const TOKEN_INTERVAL: Duration = Duration::from_secs(2);
/// How long the reading of a token may take: its file may lie on a network.
const TOKEN_DEADLINE: Duration = Duration::from_secs(2);
/// How often an adopted run is looked at.
const ADOPTED: Duration = Duration::from_secs(2);
/// Why a run is not started, for the person who asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refused {
    message: String,
    exit_code: u8,
}

impl Refused {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), exit_code: 1 }
    }
}

impl From<LaunchError> for Refused {
    fn from(error: LaunchError) -> Self {
        Self { exit_code: error.exit_code(), message: error.to_string() }
    }
}

/// Serves one `weir run` to its end.
pub(super) async fn serve(
    weir: &Arc<Weir>,
    mut connection: Connection,
    request: RunRequest,
    descriptors: Vec<OwnedFd>,
) {
    let uid = connection.peer.uid;
    let agent = request.agent.clone();
    if let Err(refused) = run(weir, &mut connection, request, descriptors).await {
        tracing::info!(agent.id = %agent, uid, "a run was not started");
        let agent = weir.config.agent(&agent);
        if agent.is_some_and(|agent| is_starter(agent, uid)) {
            weir.record_admin(Some(uid), "run-refused", refused.message.clone());
        } else {
            let agent = agent.map(|agent| agent.name.clone());
            weir.record_often(Kind::RunRefused { uid, agent }, &refused.message, None);
        }
        let reply = Reply::Failed { message: refused.message, exit_code: refused.exit_code };
        // Whoever asked may be gone.
        let _ = connection.send(&reply).await;
    }
}

async fn run(
    weir: &Arc<Weir>,
    connection: &mut Connection,
    request: RunRequest,
    descriptors: Vec<OwnedFd>,
) -> Result<(), Refused> {
    let starter = connection.peer.uid;
    let agent = weir.config.agent(&request.agent).ok_or_else(|| no_agent(&request.agent))?.clone();
    may_start(&agent, starter)?;
    let mut descriptors = descriptors.into_iter();
    let (Some(stdin), Some(stdout), Some(stderr)) = (descriptors.next(), descriptors.next(), descriptors.next()) else {
        return Err(Refused::new("the request came without its three descriptors; use `weir run`"));
    };
    let token_file = token_file(&agent, &request, starter)?;
    let token = first_token(descriptors.next(), &token_file).await?;
    let identity = verify(weir, &agent, &token).await?;
    let (begun, account) = {
        let (weir, agent, file) = (weir.clone(), agent.clone(), token_file.path.clone());
        blocking(move || begin_with_account(&weir, &agent, identity, starter, file)).await??
    };
    let spec = spec(weir, &agent, account, &begun.folder, request, starter);
    let mut running = weir.launcher.launch(spec, [stdin, stdout, stderr]).await?;
    begun.run.note_pid(running.pid.unsigned_abs());
    weir.record_admin(
        Some(starter),
        "run-start",
        format!("agent `{}`, run {}, pid {}", agent.name, begun.run.id, running.pid),
    );
    if connection.send(&Reply::Started { pid: running.pid }).await.is_ok() {
        watch_token(weir, &agent, &begun.run, token_file);
    }
    let exit = launch::attend(connection, &mut running, &begun.folder).await;
    weir.record_admin(Some(starter), "run-end", format!("agent `{}`, run {}: {exit}", agent.name, begun.run.id));
    Ok(())
}

fn no_agent(name: &str) -> Refused {
    Refused::new(format!("no agent `{}` is configured; add an [[agent]] of that name", name.escape_debug()))
}

/// Root may start any agent, others those that name them.
pub(super) fn is_starter(agent: &config::Agent, uid: u32) -> bool {
    if uid == 0 {
        return true;
    }
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => agent.starters.contains(&user.name),
        Ok(None) | Err(_) => false,
    }
}

fn may_start(agent: &config::Agent, uid: u32) -> Result<(), Refused> {
    if is_starter(agent, uid) {
        return Ok(());
    }
    Err(Refused::new(format!(
        "uid {uid} may not start agent `{}`; root may add the user to its `starters`",
        agent.name
    )))
}

/// Where a renewed token appears: what the starter names, else what the configuration says.
fn token_file(agent: &config::Agent, request: &RunRequest, starter: u32) -> Result<TokenFile, Refused> {
    let named = |path: PathBuf, named_by| TokenFile { path, named_by, starter };
    match (&request.token_file, &agent.token_file) {
        (Some(path), _) => Ok(named(path.clone(), NamedBy::Starter)),
        (None, Some(path)) => Ok(named(path.clone(), NamedBy::Configuration)),
        (None, None) => Err(Refused::new(format!(
            "agent `{}` has no token; name one with --token-file, or configure `token_file`",
            agent.name
        ))),
    }
}

/// The token to begin with: what a starter names they have opened themselves.
pub(super) async fn first_token(opened: Option<OwnedFd>, file: &TokenFile) -> Result<SecretString, Refused> {
    match (opened, file.named_by) {
        (Some(opened), _) => read_token_of(opened).await.map_err(Refused::new),
        (None, NamedBy::Configuration) => {
            let file = file.clone();
            blocking(move || file.read()).await?.map_err(|error| Refused::new(error.to_string()))
        }
        (None, NamedBy::Starter) => {
            Err(Refused::new("the request names a token file and came without its descriptor; use `weir run`"))
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Refused::new(format!("the daemon failed: {error}")))
}

/// Reads a token from a file that its caller opened: what they cannot open is not opened for them.
pub(super) async fn read_token_of(file: OwnedFd) -> Result<SecretString, String> {
    let reading = tokio::task::spawn_blocking(move || read_opened(file));
    match tokio::time::timeout(TOKEN_DEADLINE, reading).await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => Err(format!("the token cannot be read: {error}")),
        Err(_) => Err(format!("the token could not be read in {TOKEN_DEADLINE:?}")),
    }
}

fn read_opened(file: OwnedFd) -> Result<SecretString, String> {
    let failed = |error| format!("the token cannot be read: {error}");
    let file = File::from(file);
    // A pipe may stay silent, and so keep a thread for as long as its writer likes.
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(
            "the token file is no regular file (a pipe, as `<(…)` makes one, is not read); write the token to a \
                    file of your own that nobody else can read"
                .to_owned(),
        );
    }
    // As when it is watched: whoever can write it would choose for whom the agent speaks.
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(format!(
            "the token file can be written by its group or by others (mode {mode:04o}); `chmod go-w` it"
        ));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    let limit = u64::try_from(MAX_TOKEN_LEN).unwrap_or(u64::MAX).saturating_add(3);
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "the token is not text".to_owned())?;
    Ok(text.trim_end_matches(['\r', '\n']).into())
}

pub(super) async fn verify(weir: &Weir, agent: &config::Agent, token: &SecretString) -> Result<Identity, Refused> {
    weir.verify(agent, token)
        .await
        .map_err(|error| Refused::new(format!("the token of agent `{}` is refused: {error}", agent.name)))
}

/// A run that is enrolled; dropping it ends it, unless it is kept: its identity first, then whatever still runs in its cgroup.
pub(super) struct Begun {
    weir: Arc<Weir>,
    pub(super) run: Arc<Run>,
    cgroup: String,
    folder: PathBuf,
    kept: bool,
}

impl Begun {
    /// Its cgroup.
    pub(super) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Leaves the run to whoever watches it.
    pub(super) fn keep(mut self) -> Arc<Run> {
        self.kept = true;
        self.run.clone()
    }
}

/// Begins a run, with the account that its command gets.
fn begin_with_account(
    weir: &Arc<Weir>,
    agent: &config::Agent,
    identity: Identity,
    starter: u32,
    token_file: PathBuf,
) -> Result<(Begun, Account), Refused> {
    match &agent.runs_as {
        RunsAs::User(user) => {
            let account = accounts::of_user(agent, user).map_err(Refused::new)?;
            Ok((begin(weir, agent, Uids::One(account.uid), identity, starter, token_file)?, account))
        }
        RunsAs::Pool(pool) => {
            let range = pool.range();
            let unknown = |error| Refused::new(format!("which uids of the pool are free cannot be told: {error}"));
            let mut busy = assign::living_uids(&range).map_err(unknown)?;
            busy.extend(weir.homes.owners(&range).map_err(unknown)?);
            let begun = begin(weir, agent, Uids::Pool { range, busy }, identity, starter, token_file)?;
            let uid = begun.run.uid;
            if let Some(why) = accounts::taken(uid).map_err(Refused::new)? {
                return Err(Refused::new(format!("agent `{}`: {why}; give it another `uid_pool`", agent.name)));
            }
            let home = weir.homes.make(begun.run.id, uid);
            let home = home.map_err(|error| Refused::new(format!("the run's home folder cannot be made: {error}")))?;
            Ok((begun, accounts::of_pool(agent, uid, home)))
        }
    }
}

/// Makes the cgroup and enrols the run in it. Blocks: it waits for the disk.
pub(super) fn begin(
    weir: &Arc<Weir>,
    agent: &config::Agent,
    uids: Uids,
    identity: Identity,
    starter: u32,
    token_file: PathBuf,
) -> Result<Begun, Refused> {
    let id: RunId = weir.registry.next_run_id();
    let cgroup = format!("{}/agents/{}/{id}", weir.config.daemon.cgroup, agent.name);
    let failed = |what: &str, error: &dyn std::fmt::Display| Refused::new(format!("{what}: {error}"));
    let kernel_id = weir.cgroups.create(&cgroup).map_err(|error| failed("the run's cgroup cannot be made", &error))?;
    let enrolment = Enrolment {
        id,
        uids,
        cgroup: identity::CgroupId(kernel_id.get()),
        starter,
        token_file: Some(token_file),
        identity,
    };
    let folder = weir.cgroups.path(&cgroup);
    let enrolled = weir.registry.enrol(enrolment);
    let run = match enrolled {
        Ok(run) => run,
        Err(error) => {
            weir.remove_cgroup(&cgroup);
            return Err(Refused::new(error.to_string()));
        }
    };
    let begun = Begun { weir: weir.clone(), run, cgroup, folder, kept: false };
    let egress = super::egress::of_agent(&weir.config, &agent.name);
    let taken = weir.kernel.enrol(kernel_id, egress);
    taken.map_err(|error| failed("the kernel does not take the run's cgroup", &error))?;
    Ok(begun)
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.kept || self.weir.stopping.load(std::sync::atomic::Ordering::Acquire) {
            return;
        }
        // First the identity, then the processes, then the kernel's entry and the uid: as long as one process lives, the
        // cgroup must be an agent's, and the uid nobody else's.
        let (weir, run, cgroup) = (self.weir.clone(), self.run.clone(), std::mem::take(&mut self.cgroup));
        tokio::spawn(async move {
            end(&weir, &run).await;
            weir.kill_and_remove(cgroup, run);
        });
    }
}

pub(super) async fn end(weir: &Weir, run: &Run) {
    let id = run.id;
    if let Err(error) = weir.change_registry(move |registry| registry.end(id)).await {
        tracing::error!(%error, "the end of a run is not written down");
    }
}

/// Takes on the runs that an earlier daemon left: those that live are watched for a new token and for their end, those that
/// ended are forgotten.
pub(super) fn adopt(weir: &Arc<Weir>) {
    weir.homes.sweep(&weir.registry.list().iter().chain(&weir.registry.ended()).map(|run| run.id).collect());
    for run in weir.registry.list() {
        if let Some(agent) = weir.config.agent(&run.agent)
            && let Some(path) = &run.token_file
        {
            let configured = agent.token_file.as_ref() == Some(path);
            let named_by = if configured { NamedBy::Configuration } else { NamedBy::Starter };
            let file = TokenFile { path: path.clone(), named_by, starter: run.starter };
            watch_token(weir, agent, &run, file);
        }
        if weir.slices.has(run.cgroup) {
            tokio::spawn(slices::until_empty(weir.clone(), run));
        } else {
            tokio::spawn(until_empty(weir.clone(), run));
        }
    }
    for run in weir.registry.ended() {
        let weir = weir.clone();
        tokio::spawn(async move {
            if weir.slices.has(run.cgroup) {
                return slices::release(&weir, &run).await;
            }
            match cgroup_of(&weir, &run).await {
                Some(cgroup) => weir.kill_and_remove(cgroup, run),
                None => weir.forget(&run).await,
            }
        });
    }
}

/// The cgroup of a run of an earlier daemon; `None` when it is gone for certain.
async fn cgroup_of(weir: &Weir, run: &Run) -> Option<String> {
    let id = CgroupId::new(run.cgroup.0)?;
    loop {
        let cgroups = weir.cgroups.clone();
        match tokio::task::spawn_blocking(move || cgroups.path_of(id)).await {
            Ok(Ok(found)) => return found,
            Ok(Err(error)) => tracing::warn!(%error, run = %run.id, "whether a run lives cannot be told"),
            Err(error) => tracing::error!(%error, "the cgroups could not be looked through"),
        }
        tokio::time::sleep(ADOPTED).await;
    }
}

/// Ends an adopted run when no process is left in its cgroup.
pub(super) async fn until_empty(weir: Arc<Weir>, run: Arc<Run>) {
    if let Some(cgroup) = cgroup_of(&weir, &run).await {
        while !weir.cgroups.remove_if_empty(&cgroup) {
            tokio::time::sleep(ADOPTED).await;
        }
    }
    end(&weir, &run).await;
    weir.record_admin(None, "run-end", format!("agent `{}`, run {}: its last process ended", run.agent, run.id));
    weir.forget(&run).await;
}

fn spec(
    weir: &Weir,
    agent: &config::Agent,
    account: Account,
    folder: &Path,
    request: RunRequest,
    starter: u32,
) -> RunSpec {
    let caller = request.env.into_iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let own = launch::Account { name: account.name.as_ref(), home: &account.home, shell: &account.shell };
    let mut env = launch::environment(caller, own);
    // PostgreSQL's clients ask the user database for a name, and it does not know a pool's uids.
    if matches!(agent.runs_as, RunsAs::Pool(_)) && !env.iter().any(|(name, _)| name == "PGUSER") {
        env.push(("PGUSER".into(), account.name.clone().into()));
    }
    weir.add_certificates(&mut env);
    RunSpec {
        cgroup: folder.to_owned(),
        uid: account.uid,
        gid: account.gid,
        groups: account.groups,
        argv: request.argv,
        env: env.into_iter().map(|(name, value)| (Text::from(&*name), Text::from(&*value))).collect(),
        cwd: request.cwd,
        terminal: request.terminal.map(|ground| Terminal { owner: starter, ground }),
        cover: super::sockets::covered(&weir.config),
    }
}

pub(super) fn watch_token(weir: &Arc<Weir>, agent: &config::Agent, run: &Arc<Run>, file: TokenFile) {
    let Some(issuer) = weir.issuer(&agent.issuer) else { return };
    let (news, mut told) = tokio::sync::mpsc::channel(8);
    let watch =
        Watch { run: run.clone(), file, issuer, registry: weir.registry.clone(), interval: TOKEN_INTERVAL, news };
    tokio::spawn(watch.until_the_end());
    let recorder = weir.recorder.clone();
    let name = agent.name.clone();
    tokio::spawn(async move {
        while let Some(news) = told.recv().await {
            let (what, detail) = tell(&news);
            tracing::info!(agent.id = %name, what, "token file");
            let event =
                Event::Admin(AdminEvent { uid: None, what: what.into(), detail: format!("agent `{name}`: {detail}") });
            if let Err(error) = recorder.record(&event) {
                tracing::error!(%error, "news of a token file is not on the record");
            }
        }
    });
}

fn tell(news: &identity::watch::News) -> (&'static str, String) {
    use identity::watch::News;
    match news {
        News::Renewed { run, expires } => {
            let until = jiff::Timestamp::try_from(*expires).map(|at| format!("{at:.0}")).unwrap_or_default();
            ("token-renewed", format!("run {run}, until {until}"))
        }
        News::Refused { run, error } => ("token-refused", format!("run {run}: {error}")),
        News::NotApplied { run, error } => ("token-refused", format!("run {run}: {error}")),
        News::Unreadable { run, error } => ("token-unreadable", format!("run {run}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use secrecy::ExposeSecret;

    use super::*;

    #[tokio::test]
    async fn a_token_is_read_from_a_file_and_never_waited_for_at_a_pipe() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"a.b.c\r\n").unwrap();
        file.rewind().unwrap();
        assert_eq!(read_token_of(file.into()).await.unwrap().expose_secret(), "a.b.c");
        let (silent, _writer) = rustix::pipe::pipe().unwrap();
        assert!(read_token_of(silent).await.unwrap_err().contains("no regular file"));
    }

    #[tokio::test]
    async fn a_starters_token_file_is_not_opened_for_them() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let file = TokenFile { path: named.path().to_owned(), named_by: NamedBy::Starter, starter: 0 };
        assert!(first_token(None, &file).await.unwrap_err().message.contains("without its descriptor"));
    }
}
