//! Understands and decides for one session: puts the steps `sql` and `policy` behind the machine's [`Judge`].

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::SystemTime,
};

use aws_lc_rs::hmac;

use super::{
    answer::{ErrorAnswer, LIMIT, NO_IDENTITY, Severity},
    catalogs::{CatalogCell, Noted},
    machine::{Judge, Judgement, Unread},
    reserved::{IdentityParameters, Reserved},
};
use crate::{
    identity::{Identity, Run, Standing},
    limits::{Account, TableId, TableVolume},
    policy::{Decided as DecidedBy, Decision, Denier, Had, Mode, Policies, PolicySet, Query, Verdict},
    sql::{self, Access, Class, Columns, Name, Object, ReadError, Reading, ReadingCache, SchemaChange, SessionNames},
};

/// Texts above this are parsed where the runtime knows that the thread is busy: its other sessions go on.
const LONG_TEXT_BYTES: usize = 4 * 1024;
/// A text that does more than so many different things is decided there as well.
const LONG_DECISION: usize = 32;
/// Decisions that a session keeps.
const KEPT_DECISIONS: usize = 256;
/// SQLSTATE syntax_error
const SYNTAX_ERROR: &str = "42601";

/// The judge of one session.
pub struct SessionJudge {
    run: Arc<Run>,
    connection: Arc<str>,
    database: Arc<str>,
    role: Arc<str>,
    identity_parameters: IdentityParameters,
    policies: Arc<Policies>,
    mode: Mode,
    account: Arc<Account>,
    cache: Arc<ReadingCache>,
    catalog: Arc<CatalogCell>,
    names: SessionNames,
    hint: Arc<str>,
    secrets: Arc<hmac::Key>,
    decided: Decided,
    /// What statements that were forwarded in the transaction that is open do to the schema.
    changes_schema: Option<SchemaChange>,
    /// The session's own last change of the schema.
    changed: Noted,
    /// What must have been seen before the message at hand is read, once its first text had to wait for that.
    awaits: Option<Noted>,
    /// The catalogue was fetched for a name in the text that is asked for next.
    asked_again: bool,
}

impl Drop for SessionJudge {
    fn drop(&mut self) {
        // What was forwarded may still happen when the session is over.
        self.note_change();
    }
}

/// Decisions made, for as long as what they were made of stands.
#[derive(Default)]
struct Decided {
    by: Option<(Arc<PolicySet>, Arc<Identity>)>,
    /// By the reading's address; the reading is kept, so that no other takes its place.
    kept: HashMap<usize, (Arc<Reading>, Arc<Judgement>)>,
}

/// How long a decision holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasts {
    /// As long as policies and identity.
    Long,
    /// For this statement alone: it depends on the time, or on what the agent has had.
    Once,
}

/// What a judge is made of.
#[derive(Clone)]
pub struct JudgeParts {
    /// Whose session it is.
    pub run: Arc<Run>,
    /// The declared connection.
    pub connection: Arc<str>,
    /// The database on it.
    pub database: Arc<str>,
    /// The role that Weir uses on the server.
    pub role: Arc<str>,
    /// Whether the server was told whose the session is.
    pub identity_parameters: IdentityParameters,
    /// The policies in force.
    pub policies: Arc<Policies>,
    /// What becomes of their denials on the connection.
    pub mode: Mode,
    /// What the agent has had.
    pub account: Arc<Account>,
    /// Readings of all sessions.
    pub cache: Arc<ReadingCache>,
    /// The database's catalogue.
    pub catalog: Arc<CatalogCell>,
    /// What names mean at the session's start.
    pub names: SessionNames,
    /// How a refused agent may ask.
    pub hint: Arc<str>,
    /// The key of the digests that stand for secrets on the record.
    pub secrets: Arc<hmac::Key>,
}

impl SessionJudge {
    /// For a session that begins.
    pub fn new(parts: JudgeParts) -> Self {
        let JudgeParts { run, connection, database, role, identity_parameters, .. } = parts;
        let JudgeParts { policies, mode, account, cache, catalog, names, hint, secrets, .. } = parts;
        let decided = Decided::default();
        Self {
            run,
            connection,
            database,
            role,
            identity_parameters,
            policies,
            mode,
            account,
            cache,
            catalog,
            names,
            hint,
            secrets,
            decided,
            changes_schema: None,
            changed: Noted::default(),
            awaits: None,
            asked_again: false,
        }
    }

    fn note_change(&mut self) {
        if let Some(change) = self.changes_schema {
            self.changed = self.catalog.note(change);
        }
    }

    /// Whether the snapshot is good for the message at hand. What others change while it waits is not waited for.
    fn sees_enough(&mut self) -> bool {
        match self.awaits {
            Some(needed) => self.catalog.has_seen(needed),
            None => {
                self.awaits = self.catalog.behind(self.changed);
                self.awaits.is_none()
            }
        }
    }

    /// The tables whose rows may come back: what is read, and what is changed, for RETURNING.
    fn tables(&self, accesses: &[Access]) -> Arc<[Arc<TableVolume>]> {
        let reached = accesses.iter().filter_map(|access| match (access.action.class(), &access.object) {
            (Class::Read | Class::Write, Object::Relation { schema, name }) => Some((schema, name)),
            _ => None,
        });
        let tables: BTreeSet<_> = reached.collect();
        let table = |(schema, name): (&Name, &Name)| {
            let (connection, database) = (self.connection.clone(), self.database.clone());
            self.account.table(TableId { connection, database, schema: schema.clone(), name: name.clone() })
        };
        tables.into_iter().map(table).collect()
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        match self.run.standing_now() {
            Standing::Valid(identity) => Some(identity),
            Standing::Expired { .. } | Standing::Frozen(_) | Standing::Unidentified | Standing::Ended => None,
        }
    }

    fn never(&self, sql: &str, error: &ReadError) -> Unread {
        let (sqlstate, message) = match error {
            ReadError::Syntax { message } => (SYNTAX_ERROR, message.clone()),
            ReadError::TooLong { .. }
            | ReadError::TooManyTokens { .. }
            | ReadError::TooDeep { .. }
            | ReadError::TooManyAccesses { .. } => (LIMIT, error.to_string()),
            ReadError::Nul | ReadError::Scan { .. } | ReadError::Parser => (SYNTAX_ERROR, error.to_string()),
        };
        // What the server's own grammar refuses gets the server's own error, and no more.
        let detail = match error {
            ReadError::Syntax { .. } => "",
            _ => "Weir could not read the statement, so it was not forwarded.",
        };
        let detail = detail.to_owned();
        let severity = Severity::Error;
        let position = sql::place_of_syntax_error(sql, error);
        Unread::Never {
            answer: Box::new(ErrorAnswer { severity, sqlstate, message, detail, hint: String::new(), position }),
            kept: sql::for_record(sql, Err(error), &|secret| self.digest(secret)).into_owned(),
        }
    }

    /// What stands for a secret: equal secrets of one host are told apart from others, and cannot be searched without
    /// the host's key.
    fn digest(&self, secret: &str) -> String {
        let tag = hmac::sign(&self.secrets, secret.as_bytes());
        let hex: String = tag.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("'<secret {hex}>'")
    }

    fn judge_afresh(
        &self,
        set: &PolicySet,
        identity: &Identity,
        reading: &Reading,
        named: &[Arc<Reading>],
    ) -> (Judgement, Lasts) {
        let mut accesses: Vec<Access> = Vec::new();
        let readings = std::iter::once(reading).chain(named.iter().map(AsRef::as_ref));
        for statement in readings.flat_map(|reading| &reading.statements) {
            accesses.extend(statement.accesses.iter().cloned());
        }
        let DecidedBy { decision, lasts, reads_volume } = set.decide_for(&Query {
            identity,
            connection: &self.connection,
            database: &self.database,
            protocol: "postgres",
            now: SystemTime::now(),
            had: Had::Counted(&self.account),
            accesses: &accesses,
        });
        let mut decision = decision.under(mode_for(self.mode, &accesses));
        let reserved = Reserved { role: &self.role, identity_parameters: self.identity_parameters };
        if let Some(refusal) = reserved.refusal(&accesses) {
            decision.verdict = refusal;
            decision.policies.clear();
        }
        let tables = self.tables(&accesses);
        let accesses = accesses.iter().map(|access| describe(access).into()).collect();
        let lasts = if lasts { Lasts::Long } else { Lasts::Once };
        (Judgement { decision, accesses, tables, reads_volume }, lasts)
    }
}

impl Judge for SessionJudge {
    fn read(&mut self, sql: &str) -> Result<Arc<Reading>, Unread> {
        if !self.sees_enough() {
            return Err(Unread::NotYet);
        }
        let Some(catalog) = self.catalog.current().filter(|_| self.catalog.failure().is_none()) else {
            self.awaits = None;
            let why = self.catalog.failure().unwrap_or_else(|| "it was never fetched".into());
            let message = format!("Weir cannot read the database's catalogue: {why}");
            let answer = ErrorAnswer { severity: Severity::Error, ..ErrorAnswer::fatal("58000", message) };
            return Err(Unread::Never {
                answer: Box::new(answer),
                kept: format!("/* not read: {} bytes */", sql.len()),
            });
        };
        let read = || self.cache.read(sql, &catalog, &self.names);
        let known = if sql.len() > LONG_TEXT_BYTES { self.cache.get(sql, &catalog, &self.names) } else { None };
        let read = match known {
            Some(reading) => Ok(reading),
            None if sql.len() > LONG_TEXT_BYTES => tokio::task::block_in_place(read),
            None => read(),
        };
        match read {
            Ok(reading) => {
                let unresolved = reading.statements.iter().any(|statement| statement.unresolved);
                // Once for a text: what is not there after a fetch is not there.
                if unresolved && !std::mem::take(&mut self.asked_again) && self.catalog.may_be_behind() {
                    self.asked_again = true;
                    return Err(Unread::NotYet);
                }
                self.asked_again = false;
                Ok(reading)
            }
            Err(error) => {
                self.awaits = None;
                Err(self.never(sql, &error))
            }
        }
    }

    fn decide(&mut self, reading: &Arc<Reading>, named: &[Arc<Reading>]) -> Arc<Judgement> {
        // All texts of the message are read.
        self.awaits = None;
        let set = self.policies.current();
        let Some(identity) = self.identity() else {
            // `standing` was asked before; between the two the identity ended.
            let decision = Decision {
                verdict: Verdict::Deny {
                    what: "any statement".into(),
                    reason: self.run.standing_now().to_string(),
                    access: None,
                    by: Denier::Weir,
                },
                policies: Vec::new(),
                set: set.id(),
                durable_first: true,
            };
            return Arc::new(Judgement { decision, accesses: Vec::new(), tables: Arc::default(), reads_volume: false });
        };
        let stands = self.decided.by.as_ref().is_some_and(|(decided_set, decided_identity)| {
            Arc::ptr_eq(decided_set, &set) && Arc::ptr_eq(decided_identity, &identity)
        });
        if !stands {
            self.decided = Decided { by: Some((set.clone(), identity.clone())), kept: HashMap::new() };
        }
        let keep = named.is_empty();
        let key = Arc::as_ptr(reading).addr();
        if keep && let Some((_, judgement)) = self.decided.kept.get(&key) {
            return judgement.clone();
        }
        let judge = || self.judge_afresh(&set, &identity, reading, named);
        let readings = std::iter::once(reading).chain(named);
        let asks: usize = readings.flat_map(|reading| &reading.statements).map(|read| read.accesses.len()).sum();
        let (judgement, lasts) = if asks > LONG_DECISION { tokio::task::block_in_place(judge) } else { judge() };
        let judgement = Arc::new(judgement);
        if keep && lasts == Lasts::Long {
            if self.decided.kept.len() >= KEPT_DECISIONS {
                self.decided.kept.clear();
            }
            self.decided.kept.insert(key, (reading.clone(), judgement.clone()));
        }
        judgement
    }

    fn forwarding(&mut self, reading: &Reading) -> Result<(), String> {
        for statement in &reading.statements {
            self.names.apply(&statement.effects).map_err(|error| error.to_string())?;
            let changes = statement.accesses.iter().filter_map(sql::schema_change).max();
            self.changes_schema = self.changes_schema.max(changes);
        }
        Ok(())
    }

    fn completed(&mut self) {
        // A COMMIT among several statements shows the change to others before the transaction's end is told.
        self.note_change();
    }

    fn idle(&mut self) {
        self.note_change();
        self.changes_schema = None;
    }

    fn redact(&self, sql: &str, reading: &Reading) -> Option<String> {
        match sql::for_record(sql, Ok(reading), &|secret| self.digest(secret)) {
            std::borrow::Cow::Borrowed(_) => None,
            std::borrow::Cow::Owned(kept) => Some(kept),
        }
    }

    fn standing(&self) -> Result<(), ErrorAnswer> {
        match self.run.standing_now() {
            Standing::Valid(_) => Ok(()),
            standing => Err(no_standing(&standing)),
        }
    }

    fn hint(&self) -> &str {
        &self.hint
    }
}

/// What an agent is told whose identity does not stand.
pub fn no_standing(standing: &Standing) -> ErrorAnswer {
    ErrorAnswer::fatal(NO_IDENTITY, format!("Weir ended this session: {standing}"))
        .hint(standing.hint().unwrap_or_default())
}

/// What becomes of the policies' denials of one statement. Where the connection observes, that statements mean to the
/// server what they mean to Weir is no policy's to let go.
pub fn mode_for(mode: Mode, accesses: &[Access]) -> Mode {
    match mode {
        Mode::Observe(_) if accesses.iter().any(sql::may_unsettle_reading) => Mode::Enforce,
        Mode::Observe(_) | Mode::Enforce => mode,
    }
}

/// An access in a line for people: `select public.customers (id, name)`.
fn describe(access: &Access) -> String {
    let what = format!("{} {}", access.action.name(), access.object);
    match &access.columns {
        Columns::None => what,
        Columns::All => format!("{what} (*)"),
        Columns::Some(columns) => {
            let columns: Vec<&str> = columns.iter().map(AsRef::as_ref).collect();
            format!("{what} ({})", columns.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{policy::Lifts, sql::Catalog};

    #[test]
    fn what_changes_how_statements_are_read_is_let_pass_by_no_mode() {
        let catalog = Catalog::default();
        let observe = Mode::Observe(Lifts::Everything);
        for (sql, binds) in [
            ("SET client_encoding = 'SJIS'", true),
            ("SET standard_conforming_strings = off", true),
            ("SELECT set_config('standard_conforming_strings', 'o' || 'ff', false)", true),
            ("SELECT set_config('client' || '_encoding', 'SJIS', false)", true),
            ("SELECT 1; SET names 'LATIN1'", true),
            ("UPDATE pg_settings SET setting = 'off' WHERE name = 'standard_conforming_strings'", true),
            ("SELECT set_config('search_path', current_user, false)", true),
            ("SET client_encoding = 'UTF8'", false),
            ("SET app.thing = 'x'", false),
            ("SET wal_level = 'x'", false),
            ("ALTER ROLE other PASSWORD 'x'", false),
            ("PREPARE TRANSACTION 'x'", false),
            ("DROP TABLE customers", false),
        ] {
            let reading = sql::read(sql, &catalog, &catalog.session_names()).unwrap();
            let accesses: Vec<Access> = reading.statements.iter().flat_map(|s| s.accesses.clone()).collect();
            let expected = if binds { Mode::Enforce } else { observe };
            assert_eq!(mode_for(observe, &accesses), expected, "{sql}: {accesses:?}");
            assert_eq!(mode_for(Mode::Enforce, &accesses), Mode::Enforce);
        }
    }
}
