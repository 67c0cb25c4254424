//! `weir policy test FILE`: whether policies decide as their tests say, without a server or a daemon.

use std::{
    fmt, fs,
    io::{self, Write},
    ops::Range,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use toml::Spanned;

use crate::{
    identity::{Group, Identity, Subject},
    limits::Volume,
    policy::{Decision, Had, LoadErrors, PolicySet, Query, Verdict},
    show::line,
    sql::{self, Access, Catalog, DeclaredTable, Object, PARSE_STACK_BYTES},
};

/// The role of sessions in tests; nothing depends on its name.
const ROLE: &str = "weir";
/// Characters of a statement that a failure shows.
const SHOWN: usize = 400;

/// A file of tests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The folder of the policies, from the file's own.
    policies: Option<PathBuf>,
    /// What holds for every case that doesn't say otherwise.
    #[serde(default)]
    defaults: Common,
    #[serde(default)]
    table: Vec<Table>,
    #[serde(default)]
    case: Vec<Spanned<Case>>,
}

/// Who asks, and where.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Common {
    agent: Option<String>,
    groups: Option<Vec<String>>,
    connection: Option<String>,
    database: Option<String>,
}

/// A table that the database has.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// `schema.table`, as the server keeps them.
    name: String,
    #[serde(default)]
    columns: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: Option<String>,
    agent: Option<String>,
    groups: Option<Vec<String>>,
    connection: Option<String>,
    database: Option<String>,
    /// The time of the decision (`2026-01-31T12:00:00Z`); now without.
    now: Option<String>,
    /// What the agent has had within the hour; nothing of tables that do not stand here.
    #[serde(default)]
    had: Vec<HadOf>,
    sql: String,
    expect: Expected,
    /// The policies that decide, exactly; `[]` for none.
    policy: Option<Ids>,
}

/// What the agent has had of one table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HadOf {
    /// `schema.table`.
    table: String,
    #[serde(default)]
    rows: u64,
    #[serde(default)]
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Allow,
    Deny,
}

/// One `@id`, or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Ids {
    One(String),
    Several(Vec<String>),
}

/// What came of one case.
struct Came {
    verdict: Expected,
    policies: Vec<String>,
    reason: String,
}

/// Runs the cases of `file` against the policies in `folder`, or in the folder that the file names.
pub(super) fn run(file: &Path, folder: Option<PathBuf>) -> Result<ExitCode> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let tests: File = toml::from_str(&text).with_context(|| format!("{} is no file of tests", file.display()))?;
    ensure!(!tests.case.is_empty(), "{} has no [[case]]", file.display());
    let beside = file.parent().unwrap_or(Path::new("."));
    let Some(folder) = folder.or_else(|| tests.policies.as_ref().map(|folder| beside.join(folder))) else {
        bail!("{} names no folder of policies; add `policies = \"…\"` to it, or use --policies DIR", file.display());
    };
    let set = PolicySet::load(&folder, None).map_err(|LoadErrors { faults, .. }| {
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the policies in {} do not load:\n{}", folder.display(), faults.join("\n"))
    })?;
    let (mut out, mut failed) = (io::stdout().lock(), 0usize);
    for case in &tests.case {
        let came = decide(&set.set, &tests, case.get_ref()).with_context(|| place(file, &text, &case.span()))?;
        if let Some(fault) = fault(case.get_ref(), &came) {
            failed = failed.saturating_add(1);
            let name = line(case.get_ref().name.as_deref().unwrap_or("(no name)"), SHOWN);
            writeln!(out, "FAILED {name} ({})", place(file, &text, &case.span()))?;
            writeln!(out, "    {}\n    {}\n", line(&case.get_ref().sql, SHOWN), line(&fault, 2 * SHOWN))?;
        }
    }
    writeln!(out, "{}: {} cases, {failed} failed", file.display(), tests.case.len())?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is otherwise than the case says, if anything.
fn fault(case: &Case, came: &Came) -> Option<String> {
    let expected = case.policy.as_ref().map(|ids| {
        let mut ids = match ids {
            Ids::One(id) => vec![id.clone()],
            Ids::Several(ids) => ids.clone(),
        };
        ids.sort();
        ids
    });
    let as_expected = came.verdict == case.expect && expected.as_ref().is_none_or(|ids| *ids == came.policies);
    let by = |ids: &[String]| if ids.is_empty() { "no policy".to_owned() } else { format!("`{}`", ids.join("`, `")) };
    (!as_expected).then(|| {
        let wanted = expected.map_or_else(String::new, |ids| format!(" by {}", by(&ids)));
        let reason = if came.reason.is_empty() { String::new() } else { format!(": {}", came.reason) };
        format!("expected {}{wanted}, found {} by {}{reason}", case.expect, came.verdict, by(&came.policies))
    })
}

fn decide(set: &PolicySet, tests: &File, case: &Case) -> Result<Came> {
    let defaults = &tests.defaults;
    let of = |own: &Option<String>, default: &Option<String>, what: &str| {
        own.clone().or_else(|| default.clone()).with_context(|| format!("`{what}` is neither here nor in [defaults]"))
    };
    let connection = of(&case.connection, &defaults.connection, "connection")?;
    let database = of(&case.database, &defaults.database, "database")?;
    let identity = Identity {
        agent: of(&case.agent, &defaults.agent, "agent")?.into(),
        subject: Subject { issuer: "test".into(), subject: "test".into() },
        groups: case
            .groups
            .iter()
            .chain(&defaults.groups)
            .next()
            .into_iter()
            .flatten()
            .map(|g| Group(g.as_str().into()))
            .collect(),
        token_id: None,
        actor: None,
        token_sha256: [0; 32],
        expires: SystemTime::now(),
    };
    let accesses = accesses(&case.sql, &catalog(&database, &tests.table)?)?;
    let had = case.had.iter().map(HadOf::volume).collect::<Result<Vec<_>>>()?;
    let now = case.now.as_deref().map_or_else(|| Ok(SystemTime::now()), moment)?;
    let query = Query {
        identity: &identity,
        connection: &connection,
        database: &database,
        protocol: "postgres",
        now,
        had: Had::Assumed(&had),
        accesses: &accesses,
    };
    let Decision { verdict, policies, .. } = set.decide(&query);
    let mut policies: Vec<String> = policies.iter().map(ToString::to_string).collect();
    policies.sort();
    Ok(match verdict {
        Verdict::Allow => Came { verdict: Expected::Allow, policies, reason: String::new() },
        Verdict::Deny { reason, .. } | Verdict::Lifted { reason, .. } => {
            Came { verdict: Expected::Deny, policies, reason }
        }
    })
}

impl HadOf {
    fn volume(&self) -> Result<(Object, Volume)> {
        let (schema, name) = schema_and_name(&self.table)?;
        let object = Object::Relation { schema: schema.into(), name: name.into() };
        Ok((object, Volume { rows: self.rows, bytes: self.bytes }))
    }
}

fn schema_and_name(table: &str) -> Result<(&str, &str)> {
    table.split_once('.').with_context(|| format!("the table `{table}` has no schema; write it as `public.{table}`"))
}

fn catalog(database: &str, tables: &[Table]) -> Result<Catalog> {
    let declared = tables.iter().map(|table| {
        let (schema, name) = schema_and_name(&table.name)?;
        Ok(DeclaredTable { schema, name, columns: &table.columns })
    });
    Ok(Catalog::declared(database, ROLE, &declared.collect::<Result<Vec<_>>>()?)?)
}

/// What a statement does. One that cannot be read does nothing that is known, and so is refused.
fn accesses(text: &str, catalog: &Catalog) -> Result<Vec<Access>> {
    let read = || sql::read(text, catalog, &catalog.session_names());
    let reading = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(PARSE_STACK_BYTES).spawn_scoped(scope, read)?;
        thread.join().map_err(|_| io::Error::other("the parser failed"))
    })?;
    let statements = reading.map(|reading| reading.statements).unwrap_or_default();
    Ok(statements.into_iter().flat_map(|statement| statement.accesses).collect())
}

fn moment(text: &str) -> Result<SystemTime> {
    let wrong = || format!("`{}` is no time; write it as 2026-01-31T12:00:00Z", text.escape_debug());
    let time: jiff::Timestamp = text.parse().with_context(wrong)?;
    let since = Duration::try_from(time.duration_since(jiff::Timestamp::UNIX_EPOCH)).with_context(wrong)?;
    SystemTime::UNIX_EPOCH.checked_add(since).with_context(wrong)
}

/// Where a case stands.
fn place(file: &Path, text: &str, span: &Range<usize>) -> String {
    let before = text.get(..span.start).unwrap_or_default();
    format!("{}, line {}", file.display(), before.matches('\n').count().saturating_add(1))
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}
