//! From a start-up message to a session that may begin: what is asked for, the server, the first event on the record, the
//! catalogue, the greeting.

use std::sync::Arc;

use aws_lc_rs::rand;
use bytes::BytesMut;

use super::{Caller, Front, Reached, Target, parameters};
use crate::{
    identity::{Identity, Run},
    policy::Mode,
    protocol::postgres::{
        answer::{self, ErrorAnswer, REFUSED, SHUTDOWN, UPSTREAM},
        cancels::CancelPlace,
        catalogs::{CatalogCell, Noted},
        reserved::IdentityParameters,
        startup::Startup,
        upstream::StartupParameters,
    },
    record::{Event, SessionLog, SessionStart, StoreError},
    sql::{NameEffect, SearchPath, SessionNames, setting_is_free},
};

/// The database to use, when user, database and settings are what the connection accepts.
pub(super) fn check_startup(target: &Target, startup: &Startup) -> Result<String, ErrorAnswer> {
    let refuse = |what: String| ErrorAnswer::fatal(REFUSED, format!("Weir refused this connection: {what}"));
    if !target.accept_users.is_empty() && !target.accept_users.contains(&startup.user) {
        let accepted = target.accept_users.join(", ");
        return Err(refuse(format!("connection `{}` accepts no user `{}`", target.name, startup.user))
            .hint(format!("use one of: {accepted}")));
    }
    for (name, value) in &startup.settings {
        if name != "search_path" && !setting_is_free(name, value) {
            return Err(refuse(format!("the setting `{name}` may not be set at start-up to this value")));
        }
    }
    match &target.database {
        Some(database) if *database != startup.database => {
            Err(refuse(format!("connection `{}` has the database `{database}` alone", target.name))
                .hint(format!("connect with dbname={database}")))
        }
        Some(_) | None => Ok(startup.database.clone()),
    }
}

pub(super) async fn connect(
    run: &Run,
    target: &Target,
    caller: &Caller<'_>,
    identity: &Identity,
    startup: &Startup,
    database: &str,
) -> Result<Reached, ErrorAnswer> {
    let own = if startup.application.is_empty() { String::new() } else { format!(" {}", startup.application) };
    let whose = match target.identity_parameters {
        IdentityParameters::Set => parameters::of(run, identity),
        IdentityParameters::Unset => Vec::new(),
    };
    let parameters = StartupParameters {
        database: database.to_owned(),
        application_name: format!("weir:{}:{}{own}", run.agent, caller.id),
        settings: startup.settings.iter().chain(&whose).cloned().collect(),
    };
    let reached = target.connect(&parameters).await.map_err(|error| {
        tracing::warn!(error = error.report(), "the server is not reached");
        ErrorAnswer::fatal(UPSTREAM, format!("Weir cannot reach the server: {error}")).hint(error.help())
    });
    let mut reached = reached?;
    if !whose.is_empty() {
        let verified = parameters::verify(&mut reached.upstream, &whose).await;
        verified.map_err(|fault| {
            tracing::warn!(fault, "the session is refused");
            ErrorAnswer::fatal(UPSTREAM, format!("Weir refused this connection: {fault}")).hint(
                "`identity_parameters` needs a server without a pooler before it, and a database whose encoding is UTF8",
            )
        })?;
    }
    Ok(reached)
}

pub(super) fn session_start(
    run: &Run,
    target: &Target,
    caller: &Caller<'_>,
    identity: &Identity,
    startup: &Startup,
    database: &str,
    tls: bool,
) -> SessionStart {
    let executable = std::fs::read_link(format!("/proc/{}/exe", caller.pid));
    SessionStart {
        session: caller.id,
        agent: run.agent.to_string(),
        run: run.id.to_string(),
        issuer: identity.subject.issuer.to_string(),
        subject: identity.subject.subject.to_string(),
        groups: identity.groups.iter().map(|group| group.0.to_string()).collect(),
        token_id: identity.token_id.clone(),
        actor: identity.actor.clone(),
        token_sha256: identity.token_sha256,
        cgroup: run.cgroup.0,
        pid: caller.pid,
        uid: caller.uid,
        executable: executable.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        connection: target.name.to_string(),
        origin: caller.origin,
        upstream: None,
        asked_user: startup.user.clone(),
        asked_database: startup.database.clone(),
        user: target.user.to_string(),
        database: database.to_owned(),
        application: startup.application.clone(),
        tls,
        observes: matches!(target.mode, Mode::Observe(_)),
    }
}

/// The start must be on the record before anything is served.
pub(super) async fn log_start(log: &mut SessionLog, start: SessionStart) -> Result<(), StoreError> {
    let event = log.append(&Event::SessionStart(start))?;
    log.receipt(event).await.map(drop)
}

/// All that a session needs before its first byte.
pub(super) struct Ready {
    pub(super) reached: Reached,
    pub(super) catalog: Arc<CatalogCell>,
    pub(super) names: SessionNames,
    pub(super) cancel_place: CancelPlace,
    /// What the agent reads first.
    pub(super) greeting: BytesMut,
    /// 32 hex digits that nobody can guess.
    pub(super) nonce: String,
}

/// Gets the rest together, once the server is reached.
pub(super) async fn make_ready(
    front: &Front,
    run: &Run,
    target: &Arc<Target>,
    startup: &Startup,
    database: &str,
    reached: Reached,
) -> Result<Ready, ErrorAnswer> {
    let catalog = ready_catalog(target, database).await?;
    let Some(names) = catalog.current().map(|catalog| catalog.session_names()) else {
        return Err(ErrorAnswer::fatal(UPSTREAM, "the database's catalogue could not be read"));
    };
    let names = with_search_path(names, startup)?;
    let (cancel_place, greeting) = greet(front, run, startup, &reached)?;
    Ok(Ready { reached, catalog, names, cancel_place, greeting, nonce: nonce()? })
}

async fn ready_catalog(target: &Target, database: &str) -> Result<Arc<CatalogCell>, ErrorAnswer> {
    let cell = target.catalogs.cell(database);
    if cell.current().is_none() || cell.behind(Noted::default()).is_some() {
        cell.fetch(target, database).await;
    }
    match cell.failure() {
        None => Ok(cell),
        Some(failure) => {
            let message = format!("Weir cannot read the catalogue of database `{database}`: {failure}");
            Err(ErrorAnswer::fatal(UPSTREAM, message))
        }
    }
}

/// A search path of the start-up message is in force beside the role's own.
fn with_search_path(mut names: SessionNames, startup: &Startup) -> Result<SessionNames, ErrorAnswer> {
    for (_, value) in startup.settings.iter().filter(|(name, _)| name == "search_path") {
        let path = SearchPath::parse(value);
        let refuse =
            |why: String| ErrorAnswer::fatal(REFUSED, format!("Weir refused this connection: search_path: {why}"));
        let path = path.map_err(|error| refuse(error.to_string()))?;
        let effect = NameEffect::SearchPath(path);
        names.apply(&[effect]).map_err(|error| refuse(error.to_string()))?;
    }
    Ok(names)
}

/// What the agent reads before its first ReadyForQuery, and the cancel key in it.
fn greet(
    front: &Front,
    run: &Run,
    startup: &Startup,
    Reached { upstream, server }: &Reached,
) -> Result<(CancelPlace, BytesMut), ErrorAnswer> {
    let mut greeting = BytesMut::new();
    let version = startup.version();
    if startup.is_negotiated() {
        answer::negotiate_version(&mut greeting, version, &startup.extensions);
    }
    answer::authentication_ok(&mut greeting);
    greeting.extend_from_slice(&upstream.greeting.parameter_frames);
    greeting.extend_from_slice(&upstream.greeting.notice_frames);
    let key = upstream.greeting.key.clone();
    let place = front.cancels.enter(run.agent.clone(), server.clone(), upstream.address, key, version);
    let place = place.map_err(|error| ErrorAnswer::fatal(SHUTDOWN, error.to_string()))?;
    answer::backend_key(&mut greeting, place.key());
    answer::ready_idle(&mut greeting);
    Ok((place, greeting))
}

/// 32 hex digits that nobody can guess.
fn nonce() -> Result<String, ErrorAnswer> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| ErrorAnswer::fatal(SHUTDOWN, "the system gives no random bytes"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
