//! The control socket, on the daemon's side: each verb is allowed by who asks, carried out and answered.

use std::{os::fd::OwnedFd, sync::Arc, time::SystemTime};

use nix::unistd::{Uid, User};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::{Weir, assigns, known, parts, runs};
use crate::{
    control::{Connection, ConnectionError, ExplainRequest, RecordRequest, Reply, Request, Server},
    identity::{Group, Identity, Run, Standing, Subject},
    policy::{self, Had, Query, Verdict},
    protocol::postgres::{judge::mode_for, reserved::Reserved, tls::CaView},
    record::{LogFilter, Reader, SessionId, StoreError},
    sql::Access,
};

/// Who may ask for a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right {
    /// Root alone.
    Root,
    /// Root and `daemon.auditors`.
    Audit,
}

/// What a verb ends with.
type Outcome = Result<Reply, String>;

/// Serves the control socket for as long as the daemon runs.
pub(super) async fn serve(weir: Arc<Weir>, server: Server) {
    loop {
        let connection = server.accept().await;
        let weir = weir.clone();
        tokio::spawn(async move { weir.answer(connection).await });
    }
}

impl Weir {
    async fn answer(self: Arc<Self>, mut connection: Connection) {
        let (request, descriptors) = match connection.recv::<Request>().await {
            Ok(received) => received,
            Err(ConnectionError::Closed | ConnectionError::Deadline { .. }) => return,
            Err(error) => {
                let message = format!("the request is not understood: {error}; are both sides the same version?");
                // Whoever sent it may be gone.
                let _ = connection.send(&Reply::Failed { message, exit_code: 1 }).await;
                return;
            }
        };
        let outcome = match request {
            Request::Run(request) => return runs::serve(&self, connection, request, descriptors).await,
            Request::Record(request) => self.read_record(&mut connection, request).await,
            request => self.verb(connection.peer.uid, request, descriptors, &mut connection).await,
        };
        let reply = outcome.unwrap_or_else(|message| Reply::Failed { message, exit_code: 1 });
        let _ = connection.send(&reply).await;
    }

    async fn verb(
        self: &Arc<Self>,
        uid: u32,
        request: Request,
        descriptors: Vec<OwnedFd>,
        connection: &mut Connection,
    ) -> Outcome {
        match request {
            Request::Status => {
                self.allow(uid, Right::Audit)?;
                Ok(Reply::Row { row: self.status() })
            }
            Request::PolicyReload => {
                self.allow(uid, Right::Root)?;
                let weir = self.clone();
                let reloaded = spawn_blocking(move || weir.reload_policies(Some(uid))).await;
                reloaded.map_err(|error| error.to_string())?.map(|reload| Reply::Text { text: reload_text(&reload) })
            }
            Request::PolicyDoc { json } => {
                self.allow(uid, Right::Audit)?;
                let document = policy::doc(&self.policies.current(), Some(&known(&self.config)));
                if json { row(&document) } else { Ok(Reply::Text { text: document.to_string() }) }
            }
            Request::Explain(request) => {
                self.allow(uid, Right::Audit)?;
                self.explain(request).await
            }
            Request::ConnectionTest(request) => {
                self.allow(uid, Right::Root)?;
                self.test_connections(uid, request, connection).await
            }
            Request::SessionKill { session } => {
                self.allow(uid, Right::Root)?;
                self.kill_session(uid, &session)
            }
            Request::AgentList => {
                self.allow(uid, Right::Audit)?;
                for row in self.agents() {
                    connection.send(&Reply::Row { row }).await.map_err(|error| error.to_string())?;
                }
                Ok(Reply::Done)
            }
            Request::AgentFreeze { agent } => {
                self.allow(uid, Right::Root)?;
                self.freeze(uid, agent).await
            }
            Request::AgentThaw { agent } => {
                self.allow(uid, Right::Root)?;
                self.thaw(uid, agent).await
            }
            Request::AgentAssign { agent, pid, token_file } => {
                self.allow(uid, Right::Root)?;
                let assigned = assigns::assign(self, uid, &agent, pid, token_file, descriptors).await;
                if let Err(why) = &assigned {
                    self.record_admin(Some(uid), "agent-assign-refused", format!("agent `{agent}`: {why}"));
                }
                assigned.map(|text| Reply::Text { text })
            }
            Request::AgentRefresh { agent } => self.refresh(uid, &agent, descriptors).await,
            Request::CaShow => Ok(Reply::Row { row: ca_row(&self.ca.show()) }),
            Request::CaRotate => {
                self.allow(uid, Right::Root)?;
                let view = self.ca.rotate().map_err(|error| error.to_string())?;
                parts::write_certificates(&self.config, &self.ca).map_err(|error| error.to_string())?;
                self.record_admin(Some(uid), "ca-rotate", format!("now {}", view.fingerprint));
                Ok(Reply::Row { row: ca_row(&view) })
            }
            // Both were answered before.
            Request::Run(_) | Request::Record(_) => Err("this verb has its own way".to_owned()),
        }
    }

    fn allow(&self, uid: u32, right: Right) -> Result<(), String> {
        let auditor = || match User::from_uid(Uid::from_raw(uid)) {
            Ok(Some(user)) => self.config.daemon.auditors.contains(&user.name),
            Ok(None) | Err(_) => false,
        };
        match right {
            Right::Root | Right::Audit if uid == 0 => Ok(()),
            Right::Audit if auditor() => Ok(()),
            Right::Audit => Err("root and the users of `daemon.auditors` may do this".to_owned()),
            Right::Root => Err("only root may do this".to_owned()),
        }
    }

    fn status(&self) -> Value {
        let pids: Vec<_> = self.registry.list().iter().filter_map(|run| run.pid()).collect();
        let withheld: Vec<Value> = self
            .targets
            .iter()
            .filter_map(|target| {
                let why = target.withheld.load_full()?;
                Some(json!({ "connection": &*target.name, "why": &*why }))
            })
            .collect();
        let programs = self.kernel.programs_at_scope().map_err(|error| error.to_string());
        let others: Vec<Value> = programs
            .iter()
            .flatten()
            .filter(|program| !program.ours)
            .map(|program| json!({ "id": program.id, "name": program.name, "kind": program.attach_type }))
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "started": timestamp(self.started),
            "recording": self.recorder.is_recording(),
            "record_trouble": self.recorder.trouble().map(|error| error.to_string()),
            "scope": self.config.daemon.scope,
            "runs_kept_apart": crate::launch::apartness().map_or_else(|error| error.to_string(), |found| found.to_string()),
            "listener_port": self.config.daemon.listener_port,
            "policy_set": self.policies.current().id().to_string(),
            "sessions": self.sessions.count(),
            "runs": pids.len(),
            "connections": self.targets.iter().map(|target| &*target.name).collect::<Vec<_>>(),
            "observed": self.config.observed().collect::<Vec<_>>(),
            "egress": self.config.agents.iter().map(|agent| {
                let allow = agent.egress.allow.iter().map(|entry| {
                    json!({ "address": entry.target.to_string(), "reason": entry.reason })
                });
                json!({ "agent": agent.name, "mode": agent.egress.mode.word(), "allow": allow.collect::<Vec<_>>() })
            }).collect::<Vec<_>>(),
            "withheld": withheld,
            "homes_left": self.homes.left().iter().map(|(home, why)| {
                json!({ "home": home.display().to_string(), "why": why })
            }).collect::<Vec<_>>(),
            "allowed": self.config.allow.iter().map(|allow| {
                json!({ "who": allow.who.to_string(), "reason": allow.reason })
            }).collect::<Vec<_>>(),
            "protected": self.config.protect.iter().map(|protect| {
                json!({ "address": format!("{}/{}:{}", protect.network.address, protect.network.prefix, protect.network.port),
                        "reason": protect.reason })
            }).collect::<Vec<_>>(),
            "programs_ours": programs.iter().flatten().filter(|program| program.ours).count(),
            "programs_of_others": others,
            "refusals_not_recorded": self.kernel.dropped_events().ok(),
        })
    }

    fn agents(&self) -> Vec<Value> {
        let runs = self.registry.list();
        let frozen = self.registry.frozen();
        let of_agent = |name: &str| {
            let runs: Vec<Value> = runs.iter().filter(|run| &*run.agent == name).map(|run| run_row(run)).collect();
            let frozen = frozen.iter().find(|(agent, _)| &**agent == name);
            json!({
                "agent": name,
                "frozen": frozen.map(|(_, freeze)| json!({ "by": &*freeze.by, "since": timestamp(freeze.since) })),
                "runs": runs,
                "sessions": self.sessions.list().iter().filter(|session| &*session.agent == name).count(),
            })
        };
        self.config.agents.iter().map(|agent| of_agent(&agent.name)).collect()
    }

    fn kill_session(&self, uid: u32, session: &str) -> Outcome {
        let id: SessionId =
            session.parse().map_err(|_| format!("`{}` is no session's name", session.escape_debug()))?;
        if !self.sessions.end(id, &format!("it was killed by {}", person(uid))) {
            return Err(format!("session {id} is not open"));
        }
        self.record_admin(Some(uid), "session-kill", format!("session {id}"));
        Ok(Reply::Text { text: format!("session {id} is ending") })
    }

    async fn freeze(self: &Arc<Self>, uid: u32, agent: String) -> Outcome {
        self.known_agent(&agent)?;
        let weir = self.clone();
        let name = agent.clone();
        let frozen = spawn_blocking(move || weir.registry.freeze(&name, &person(uid))).await;
        frozen.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.record_admin(Some(uid), "agent-freeze", format!("agent `{agent}`"));
        Ok(Reply::Text { text: format!("agent `{agent}` is frozen: its sessions end, and none begins") })
    }

    async fn thaw(self: &Arc<Self>, uid: u32, agent: String) -> Outcome {
        self.known_agent(&agent)?;
        let weir = self.clone();
        let name = agent.clone();
        let thawed = spawn_blocking(move || weir.registry.thaw(&name)).await;
        thawed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.record_admin(Some(uid), "agent-thaw", format!("agent `{agent}`"));
        Ok(Reply::Text { text: format!("agent `{agent}` is no longer frozen") })
    }

    pub(super) fn known_agent(&self, agent: &str) -> Result<&crate::config::Agent, String> {
        self.config.agent(agent).ok_or_else(|| format!("no agent `{}` is configured", agent.escape_debug()))
    }

    async fn refresh(self: &Arc<Self>, uid: u32, agent: &str, descriptors: Vec<OwnedFd>) -> Outcome {
        let agent = self.known_agent(agent)?;
        if !runs::is_starter(agent, uid) {
            return Err(format!("{} may not start agent `{}`, nor renew its token", person(uid), agent.name));
        }
        let Some(file) = descriptors.into_iter().next() else {
            return Err("the request came without a token file".to_owned());
        };
        let token = runs::read_token_of(file).await?;
        let identity = self.verify(agent, &token).await.map_err(|error| format!("the token is refused: {error}"))?;
        let runs = self.registry.refresh_agent(&identity).map_err(|error| error.to_string())?;
        self.record_admin(Some(uid), "token-refresh", format!("agent `{}`, {} runs", agent.name, runs.len()));
        let until = timestamp(identity.expires);
        Ok(Reply::Text { text: format!("{} runs of agent `{}` are identified until {until}", runs.len(), agent.name) })
    }

    async fn explain(&self, request: ExplainRequest) -> Outcome {
        let agent = self.known_agent(&request.agent)?;
        let index = self.config.connections.iter().position(|connection| connection.name == request.connection);
        let target = index.and_then(|index| self.targets.get(index));
        let Some(target) = target else {
            return Err(format!("no connection `{}` is declared", request.connection.escape_debug()));
        };
        let database = request.database.or_else(|| target.database.clone());
        let Some(database) = database else {
            return Err(format!("connection `{}` has several databases; name one with --database", target.name));
        };
        let cell = target.catalogs.cell(&database);
        cell.fetch(target, &database).await;
        if let Some(failure) = cell.failure() {
            return Err(format!("the catalogue of database `{database}` cannot be read: {failure}"));
        }
        let Some(catalog) = cell.current() else {
            return Err(format!("the catalogue of database `{database}` cannot be read"));
        };
        let identity = self.identity_to_explain(agent, request.groups);
        let names = catalog.session_names();
        let reading = tokio::task::block_in_place(|| crate::sql::read(&request.sql, &catalog, &names));
        let reading = reading.map_err(|error| format!("the statement cannot be read, so it is refused: {error}"))?;
        let accesses: Vec<Access> =
            reading.statements.iter().flat_map(|statement| statement.accesses.iter().cloned()).collect();
        let reasons: Vec<&String> = reading.statements.iter().flat_map(|statement| &statement.reasons).collect();
        let mode = mode_for(target.mode, &accesses);
        let mut explanation = policy::explain(
            &self.policies.current(),
            &Query {
                identity: &identity,
                connection: &target.name,
                database: &database,
                protocol: "postgres",
                now: SystemTime::now(),
                had: self.front.accounts.of(&agent.name).map_or(Had::Assumed(&[]), |account| Had::Counted(account)),
                accesses: &accesses,
            },
            mode,
        );
        // As sessions have it: a credential may name another role than the configuration.
        let role = catalog.login().unwrap_or(&target.user);
        let reserved = Reserved { role, identity_parameters: target.identity_parameters };
        if let Some(Verdict::Deny { reason, .. }) = reserved.refusal(&accesses) {
            (explanation.allowed, explanation.observed) = (false, false);
            explanation.reason = reason;
        }
        let mut row = serde_json::to_value(&explanation).map_err(|error| error.to_string())?;
        if let Some(object) = row.as_object_mut() {
            object.insert("not_understood".to_owned(), json!(reasons));
            object.insert("text".to_owned(), json!(explanation.to_string()));
        }
        Ok(Reply::Row { row })
    }

    /// The identity to explain for: the agent's newest run's, or one with the groups that were named.
    fn identity_to_explain(&self, agent: &crate::config::Agent, groups: Vec<String>) -> Identity {
        let newest = self.registry.list().into_iter().rev().find(|run| *run.agent == *agent.name);
        if let Some(Standing::Valid(identity)) = newest.map(|run| run.standing_now())
            && groups.is_empty()
        {
            return Identity::clone(&identity);
        }
        let issuer = self.config.issuers.iter().find(|issuer| issuer.name == agent.issuer);
        let issuer = issuer.map(|issuer| issuer.issuer.as_str()).unwrap_or_default();
        Identity {
            agent: agent.name.as_str().into(),
            subject: Subject {
                issuer: issuer.into(),
                subject: agent.subject.as_deref().unwrap_or("(any subject)").into(),
            },
            groups: groups.into_iter().map(|group| Group(group.into())).collect(),
            token_id: None,
            actor: None,
            token_sha256: [0; 32],
            expires: SystemTime::now(),
        }
    }

    async fn read_record(&self, connection: &mut Connection, request: RecordRequest) -> Outcome {
        let uid = connection.peer.uid;
        self.allow(uid, Right::Audit)?;
        let Some(reader) = self.recorder.reader() else {
            return Err("the daemon runs with --unsafe-no-record: there is no record".to_owned());
        };
        let detail = serde_json::to_string(&request).unwrap_or_default();
        self.record_admin(Some(uid), "record-read", detail);
        match request {
            RecordRequest::Sessions { filter } => stream(connection, reader.sessions(filter)).await,
            RecordRequest::Show { session } => {
                let id: SessionId =
                    session.parse().map_err(|_| format!("`{}` is no session's name", session.escape_debug()))?;
                stream(connection, reader.session(id)).await
            }
            RecordRequest::Log { filter, follow: false } => stream(connection, reader.log(filter)).await,
            RecordRequest::Log { filter, follow: true } => follow(connection, &reader, filter).await,
        }
    }
}

/// A cursor over the record: its pages block.
trait Pages: Send + 'static {
    type Row: serde::Serialize + Send + 'static;

    fn next_page(&mut self) -> Result<Option<Vec<Self::Row>>, StoreError>;
}

impl Pages for crate::record::Log {
    type Row = crate::record::Row;

    fn next_page(&mut self) -> Result<Option<Vec<Self::Row>>, StoreError> {
        self.page()
    }
}

impl Pages for crate::record::Sessions {
    type Row = crate::record::SessionSummary;

    fn next_page(&mut self) -> Result<Option<Vec<Self::Row>>, StoreError> {
        self.page()
    }
}

/// Sends page after page, up to the end of the record.
async fn stream<P: Pages>(connection: &mut Connection, mut pages: P) -> Outcome {
    loop {
        let more;
        (pages, more) = send_page(connection, pages).await?;
        if !more {
            return Ok(Reply::Done);
        }
    }
}

/// Sends one page; whether there may be another.
async fn send_page<P: Pages>(connection: &mut Connection, mut pages: P) -> Result<(P, bool), String> {
    let read = spawn_blocking(move || (pages.next_page(), pages)).await.map_err(|error| error.to_string())?;
    let (page, pages) = read;
    let Some(rows) = page.map_err(|error| error.to_string())? else { return Ok((pages, false)) };
    for row in rows {
        let row = serde_json::to_value(&row).map_err(|error| error.to_string())?;
        connection.send(&Reply::Row { row }).await.map_err(|error| error.to_string())?;
    }
    Ok((pages, true))
}

/// Sends what is there, and then what comes, until the reader goes away.
async fn follow(connection: &mut Connection, reader: &Reader, filter: LogFilter) -> Outcome {
    let Some(mut grown) = reader.follow() else { return Ok(Reply::Done) };
    let mut log = reader.log(filter);
    loop {
        let more;
        (log, more) = send_page(connection, log).await?;
        if more {
            continue;
        }
        tokio::select! {
            changed = grown.changed() => if changed.is_err() {
                return Ok(Reply::Done);
            },
            // Nothing is said on this connection any more; it ends when the reader does.
            _ = connection.recv::<Request>() => return Ok(Reply::Done),
        }
    }
}

fn row(value: &impl serde::Serialize) -> Outcome {
    serde_json::to_value(value).map(|row| Reply::Row { row }).map_err(|error| error.to_string())
}

fn run_row(run: &Run) -> Value {
    let standing = run.standing_now();
    let expires = match &standing {
        Standing::Valid(identity) => Some(timestamp(identity.expires)),
        Standing::Expired { .. } | Standing::Frozen(_) | Standing::Unidentified | Standing::Ended => None,
    };
    json!({
        "run": run.id.to_string(),
        "pid": run.pid(),
        "uid": run.uid,
        "started": timestamp(run.started),
        "subject": &*run.subject.subject,
        "issuer": &*run.subject.issuer,
        "standing": standing.to_string(),
        "expires": expires,
    })
}

fn ca_row(view: &CaView) -> Value {
    json!({
        "pem": view.pem,
        "fingerprint": view.fingerprint,
        "names": view.names,
        "expires": timestamp(view.expires),
    })
}

fn reload_text(reload: &policy::Reload) -> String {
    let mut text = format!("policies in force: {}", reload.now);
    for (what, ids) in [("added", &reload.added), ("removed", &reload.removed), ("changed", &reload.changed)] {
        if !ids.is_empty() {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            text.push_str(&format!("\n{what}: {}", ids.join(", ")));
        }
    }
    for warning in &reload.warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    text
}

fn person(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => format!("uid {uid}"),
    }
}

fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|at| format!("{at:.0}")).unwrap_or_default()
}
