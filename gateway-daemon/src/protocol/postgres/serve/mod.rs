//! One agent's connection, from its [`opening`](super::opening) to its end: the session upstream, the greeting, and then the
//! [`Pump`].

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use bytes::BytesMut;
use tokio::io::AsyncWriteExt;

use super::{
    answer::{self, ErrorAnswer, IDLE, LIMIT, NO_IDENTITY, PROTOCOL_VIOLATION, RECORD_FAILED, TOO_MANY, USED_UP},
    cancels::Cancels,
    catalogs::Catalogs,
    frame::FrameError,
    judge::{JudgeParts, SessionJudge, no_standing},
    machine::{Fault, Judge, Machine, MachineLimits},
    opening::{NoSession, open, told},
    pump::{Ending, Pump, World},
    reserved::IdentityParameters,
    startup::Startup,
    tls::{AgentStream, HostCa},
    upstream::{self, SessionAttributes, Upstream, UpstreamStream},
};
use crate::{
    accept::Accepted,
    identity::{Run, Standing},
    limits::{Account, Accounts},
    policy::{Mode, Policies},
    protocol::sessions::{self, SessionView, Sessions},
    record::{Recorder, SessionStart, StoreError},
    sql::ReadingCache,
};

mod begin;
mod parameters;
mod reach;
mod refusals;
mod world;

use begin::{Ready, check_startup, connect, log_start, make_ready, session_start};
pub use reach::{ConnectError, Reached, Server};
use refusals::Connect;
use world::{Running, SessionWorld};

/// How long a socket may take to be written that was accepted just now.
const TOLD: Duration = Duration::from_secs(1);

/// One declared connection, ready to be served.
#[derive(Debug)]
pub struct Target {
    /// Its name.
    pub name: Arc<str>,
    /// Its servers, in the order in which they are tried.
    pub servers: Vec<Arc<Server>>,
    /// What the server of a session must be.
    pub attributes: SessionAttributes,
    /// The role, where the credential does not name one.
    pub user: Arc<str>,
    /// The only database, where one is declared.
    pub database: Option<String>,
    /// Whether the server is told whose a session is.
    pub identity_parameters: IdentityParameters,
    /// Users that an agent may name; all when empty.
    pub accept_users: Vec<String>,
    /// What becomes of the policies' denials.
    pub mode: Mode,
    /// Its databases' catalogues.
    pub catalogs: Catalogs,
    /// Why it is not served now, if so: a Unix socket that an agent could open.
    pub withheld: arc_swap::ArcSwapOption<String>,
}

/// What all sessions share.
#[derive(Debug)]
pub struct Front {
    /// The record.
    pub recorder: Recorder,
    /// The policies in force.
    pub policies: Arc<Policies>,
    /// Readings of statements seen before.
    pub cache: Arc<ReadingCache>,
    /// What the agents have used up.
    pub accounts: Arc<Accounts>,
    /// Open sessions.
    pub sessions: Arc<Sessions>,
    /// Keys of cancel requests.
    pub cancels: Arc<Cancels>,
    /// Whence certificates for the agents' side come.
    pub ca: Arc<HostCa>,
    /// Limits of a session.
    pub limits: MachineLimits,
    /// From accept to the start-up message.
    pub startup_deadline: Duration,
    /// Longest time without a byte.
    pub idle: Option<Duration>,
    /// How a refused agent may ask.
    pub hint: Arc<str>,
    /// The key of the digests that stand for secrets.
    pub secrets: Arc<hmac::Key>,
}

/// A connection's place among those that begin, taken at its agent's turn.
#[derive(Debug)]
pub struct Admitted {
    account: Arc<Account>,
    place: sessions::Opening,
    until: Instant,
}

impl Admitted {
    /// When it must have begun.
    pub const fn until(&self) -> Instant {
        self.until
    }
}

/// Takes a connection's place and waits for its agent's turn. `None` where it is refused: that is told and on the record.
pub async fn admit(front: &Front, agent: &str, accepted: &Accepted) -> Option<Admitted> {
    let Some(account) = front.accounts.of(agent) else {
        tracing::error!("no session: the agent is no longer configured");
        return None;
    };
    // Before the first byte: a start-up that never ends has its place as well.
    let place = match front.sessions.begin(&account.agent, account.limits.connections) {
        Ok(place) => place,
        Err(error) => {
            let answer = ErrorAnswer::fatal(TOO_MANY, error.to_string());
            refusals::record(front, &connect_of(account, accepted), &answer);
            // A fresh socket can be written as soon as it is looked at, and its buffer takes it whole: what it does not take is
            // not waited for.
            let writable = tokio::time::timeout(TOLD, accepted.stream.writable()).await;
            if matches!(writable, Ok(Ok(()))) {
                let _ = accepted.stream.try_write(&answer.to_bytes());
            }
            return None;
        }
    };
    if let Some(turn) = account.connect() {
        tokio::time::sleep_until(turn.into()).await;
    }
    Some(Admitted { account: account.clone(), place, until: Instant::now() + front.startup_deadline })
}

fn connect_of<'a>(account: &'a Account, accepted: &Accepted) -> Connect<'a> {
    let &Accepted { origin: destination, cgroup, pid, uid, .. } = accepted;
    Connect { account, destination, cgroup: cgroup.get(), pid, uid }
}

/// Serves one connection to its end. `run` and `target` are what the cgroup and the origin led to; it is admitted here unless
/// it was before.
pub async fn serve(
    front: Arc<Front>,
    accepted: Accepted,
    run: Arc<Run>,
    target: Arc<Target>,
    admitted: Option<Admitted>,
) {
    let id = front.recorder.next_session();
    let span = tracing::info_span!("session", session.id = %id, agent.id = %run.agent, connection.id = %target.name);
    let work = async {
        let mut opened = None;
        let admitted = match admitted {
            Some(admitted) => Some(admitted),
            None => admit(&front, &run.agent, &accepted).await,
        };
        let Some(Admitted { account, place, until }) = admitted else { return };
        let account = &account;
        let connect = connect_of(account, &accepted);
        let Accepted { stream, origin, pid, uid, .. } = accepted;
        // Boxed, as all that is over before the session begins: a session's memory is its task's.
        let opening = Box::pin(open(&front, stream, &run, &target, origin, &mut opened));
        let outcome = match tokio::time::timeout_at(until.into(), opening).await {
            Ok(outcome) => outcome,
            Err(_) => Err(NoSession::Silent("the start-up took longer than limits.startup".into())),
        };
        let outcome = match outcome {
            Ok(startup) => {
                let caller = Caller { id, origin, pid, uid, account };
                session(&front, &run, &target, &caller, place, startup, &mut opened).await
            }
            Err(no_session) => Err(no_session),
        };
        match outcome {
            Ok(reason) => tracing::info!(end = %reason, "session ended"),
            Err(NoSession::Cancelled) => {}
            Err(NoSession::Silent(reason)) => tracing::info!(end = %reason, "no session"),
            Err(NoSession::Told(answer)) => {
                refusals::record(&front, &connect, &answer);
                if let Some(mut stream) = opened {
                    // Whether it still listens is its own affair.
                    let _ = stream.write_all(&answer.to_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            }
        }
    };
    tracing::Instrument::instrument(work, span).await;
}

/// Who connected.
struct Caller<'a> {
    account: &'a Arc<Account>,
    id: crate::record::SessionId,
    origin: SocketAddr,
    pid: u32,
    uid: u32,
}

/// Connects upstream, greets the agent and serves the session; gives the reason of its end.
async fn session(
    front: &Arc<Front>,
    run: &Arc<Run>,
    target: &Arc<Target>,
    caller: &Caller<'_>,
    opening: sessions::Opening,
    startup: Startup,
    opened: &mut Option<AgentStream>,
) -> Result<String, NoSession> {
    let identity = match run.standing_now() {
        Standing::Valid(identity) => identity,
        standing => return Err(told(no_standing(&standing))),
    };
    let view = SessionView {
        id: caller.id,
        agent: run.agent.clone(),
        run: run.id,
        connection: target.name.clone(),
        pid: caller.pid,
        origin: caller.origin,
        started: std::time::SystemTime::now(),
    };
    let place = front.sessions.enter(view, caller.account.limits.connections);
    let place = place.map_err(|error| told(ErrorAnswer::fatal(TOO_MANY, error.to_string())))?;
    drop(opening);
    if let Some(over) = caller.account.over_record() {
        return Err(told(ErrorAnswer::fatal(USED_UP, format!("Weir refused this connection: {over}"))));
    }
    if let Some(why) = target.withheld.load_full() {
        return Err(told(ErrorAnswer::fatal(NO_IDENTITY, format!("Weir does not serve this connection: {why}"))));
    }
    let database = check_startup(target, &startup).map_err(told)?;
    let mut log = front.recorder.session_of(caller.id, caller.account);
    let agent_tls = opened.as_ref().is_some_and(AgentStream::is_tls);
    let start = session_start(run, target, caller, &identity, &startup, &database, agent_tls);
    let connected = Box::pin(connect(run, target, caller, &identity, &startup, &database)).await;
    let start = match &connected {
        Ok(Reached { upstream, .. }) => {
            SessionStart { upstream: Some(upstream.address), user: upstream.user.to_string(), ..start }
        }
        Err(_) => start,
    };
    log_start(&mut log, start).await.map_err(|error| told(record_failed(&error)))?;
    let ready = match connected {
        Ok(reached) => Box::pin(make_ready(front, run, target, &startup, &database, reached)).await,
        Err(answer) => Err(answer),
    };
    let Ready { reached: Reached { upstream, server }, catalog, names, cancel_place, greeting, nonce } = ready
        .map_err(|answer| {
            log.ends_by(&answer.message);
            told(answer)
        })?;
    let Some(agent) = opened.take() else { return Err(NoSession::Silent("the agent's connection is gone".into())) };
    let judge = SessionJudge::new(JudgeParts {
        run: run.clone(),
        connection: target.name.clone(),
        database: database.as_str().into(),
        role: upstream.user.clone(),
        identity_parameters: target.identity_parameters,
        policies: front.policies.clone(),
        mode: target.mode,
        account: caller.account.clone(),
        cache: front.cache.clone(),
        catalog: catalog.clone(),
        names,
        hint: front.hint.clone(),
        secrets: front.secrets.clone(),
    });
    let statement = Running { server: server.clone(), address: upstream.address, key: upstream.greeting.key.clone() };
    let world = SessionWorld::new(run.clone(), place.end.clone(), catalog, target.clone(), database, statement);
    let mut machine = Machine::new(judge, log, front.limits, caller.account.clone(), &nonce);
    if let Some(key) = &upstream.greeting.key {
        machine = machine.known_as(key.process.cast_unsigned(), cancel_place.key().process);
    }
    machine.to_agent().push(&greeting, 0);
    let Upstream { stream, leftover, address, greeting, .. } = upstream;
    let mut pump = Pump::new((agent, BytesMut::new()), (stream, leftover), machine, world, front.idle);
    let ending = pump.run().await;
    let reason = end(&mut pump, &ending, front).await;
    // What still runs for an agent that was cut off is not left to run.
    if let (Ending::Told(_) | Ending::AgentBroke(_) | Ending::Fault(_), Some(key)) = (&ending, greeting.key)
        && let Err(error) = Box::pin(upstream::cancel(&server.settings, address, &key)).await
    {
        tracing::warn!(%error, "what the session ran could not be cancelled");
    }
    drop((cancel_place, place));
    Ok(reason)
}

/// Ends the session on both sides and on the record; gives the reason.
async fn end<J, W>(pump: &mut Pump<AgentStream, UpstreamStream, J, W>, ending: &Ending, front: &Front) -> String
where
    J: Judge,
    W: World,
{
    let (reason, answer) = match ending {
        Ending::Agent => ("closed by the agent".to_owned(), None),
        Ending::Server => ("closed by the server".to_owned(), None),
        Ending::AgentBroke(error) => (format!("the agent's connection broke: {error}"), None),
        Ending::ServerBroke(error) => {
            let message = "the server's connection broke";
            (format!("{message}: {error}"), Some(ErrorAnswer::fatal(answer::UPSTREAM_LOST, message)))
        }
        Ending::Idle => {
            let limit = front.idle.unwrap_or_default();
            let message = format!("no byte came for {limit:?}, the limit of limits.idle");
            (message.clone(), Some(ErrorAnswer::fatal(IDLE, message)))
        }
        Ending::Told(answer) => (answer.message.clone(), Some(answer.clone())),
        Ending::Fault(fault) => (fault.to_string(), Some(fault_answer(fault))),
    };
    // On the record first: the farewell may wait for an agent that does not read.
    if let Err(error) = pump.machine.end(&reason) {
        tracing::error!(%error, "the end of a session is not on the record");
    }
    if let Some(answer) = answer {
        if matches!(ending, Ending::Fault(Fault::Record(_))) {
            pump.machine.say_unrecorded(&answer);
        } else {
            pump.machine.say_fatal(&answer);
        }
    }
    pump.farewell().await;
    reason
}

fn fault_answer(fault: &Fault) -> ErrorAnswer {
    let text = format!("Weir ended this session: {fault}");
    match fault {
        Fault::Agent(_) | Fault::InCopy { .. } | Fault::AgentFrame(FrameError::Short { .. }) => {
            ErrorAnswer::fatal(PROTOCOL_VIOLATION, text)
        }
        Fault::AgentFrame(FrameError::Long { .. }) => ErrorAnswer::fatal(LIMIT, text),
        Fault::Server(_) | Fault::ServerFrame(_) => ErrorAnswer::fatal(answer::UPSTREAM_LOST, text),
        Fault::Record(error) => record_failed(error),
        Fault::Standing(answer) => (**answer).clone(),
        Fault::UsedUp(_) => ErrorAnswer::fatal(USED_UP, text),
    }
}

fn record_failed(error: &StoreError) -> ErrorAnswer {
    ErrorAnswer::fatal(RECORD_FAILED, format!("Weir ended this session: {error}"))
        .hint("nothing is served that cannot be recorded; try again when the host's operator has mended the record")
}
