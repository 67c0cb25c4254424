//! Row security of a real server by `weir.subject`: each agent sees its own rows, and cannot become another.

use anyhow::{Context, Result, ensure};
use end_to_end::{Agent, Database, Setup, Weir, servers};

use crate::player::{Style, everything, words};

const SCENARIOS: &str = include_str!("row_security.py");

/// Two agents who may do everything that policies can permit, and what the server lets them see.
struct Stage {
    weir: Weir,
    database: Database,
}

fn declare(setup: &mut Setup, database: &Database) -> Result<()> {
    everything(setup, database)?;
    setup.agent("codex", &["all"])?;
    let connection = setup.config.get_mut("connection").and_then(|list| list.get_mut(0)).context("no connection")?;
    let connection = connection.as_table_mut().context("no table")?;
    connection.insert("identity_parameters".into(), true.into());
    Ok(())
}

impl Stage {
    fn set() -> Result<Self> {
        let database = Database::create()?;
        let weir = Weir::start(|setup| declare(setup, &database))?;
        let stage = Self { weir, database };
        let role = &servers()?.postgres.role;
        let rows: Vec<_> = ["claude", "codex"]
            .map(|name| Ok(format!("('{}', '{name} wrote')", stage.subject(name)?)))
            .into_iter()
            .collect::<Result<_>>()?;
        stage.database.sql(&format!(
            "CREATE TABLE notes (owner text, body text);
             INSERT INTO notes VALUES {};
             CREATE FUNCTION harmless() RETURNS int LANGUAGE sql AS 'SELECT 1';
             ALTER FUNCTION harmless() OWNER TO {role};
             GRANT ALL ON notes TO {role};
             ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
             CREATE POLICY own ON notes USING (owner = current_setting('weir.subject'))",
            rows.join(", ")
        ))?;
        Ok(stage)
    }

    fn subject(&self, name: &str) -> Result<String> {
        Ok(self.weir.agent(name)?.person().subject.clone())
    }

    fn play(&self, agent: &Agent<'_>, other: &str, scenario: &str) -> Result<String> {
        let words = words(SCENARIOS, scenario, &self.database, Style::Brief)?;
        let ran = agent.program(words)?.env("OTHER", other).run()?;
        ran.succeeded().with_context(|| format!("scenario {scenario}, having shown:\n{}", ran.stdout()))
    }

    fn sees(&self, name: &str) -> Result<()> {
        let shown = self.play(&self.weir.agent(name)?, "nobody", "sees")?;
        let own = format!("['{} {name} wrote']", self.subject(name)?);
        ensure!(shown.lines().any(|line| line == own), "{name} sees {shown}");
        Ok(())
    }
}

#[test]
fn each_agent_sees_the_rows_of_its_subject_alone() -> Result<()> {
    let stage = Stage::set()?;
    stage.sees("claude")?;
    stage.sees("codex")?;
    // What roles and databases have for it counts less than what Weir says at the session's start.
    let (role, name, other) = (&servers()?.postgres.role, &stage.database.name, stage.subject("codex")?);
    stage.database.sql(&format!("ALTER DATABASE {name} SET weir.subject = '{other}'"))?;
    stage.database.sql(&format!("ALTER ROLE {role} IN DATABASE {name} SET weir.subject = '{other}'"))?;
    stage.sees("claude")?;
    stage.sees("codex")
}

#[test]
fn no_statement_makes_an_agent_another_although_policies_permit_everything() -> Result<()> {
    let stage = Stage::set()?;
    let shown = stage.play(&stage.weir.agent("claude")?, &stage.subject("codex")?, "tries")?;
    let tried: usize = shown.lines().last().context("nothing shown")?.parse()?;
    ensure!(tried >= 40, "{tried} statements");
    let explained = stage.weir.weir([
        "explain",
        "--agent",
        "claude",
        "--group",
        "corp/all",
        "--connection",
        "orders",
        "SET weir.subject = 'x'",
    ])?;
    ensure!(
        format!("{}{}", explained.stdout(), explained.stderr()).contains("Weir's to set alone"),
        "{}",
        explained.stdout()
    );
    Ok(())
}

#[test]
fn no_start_up_makes_an_agent_another() -> Result<()> {
    let stage = Stage::set()?;
    let shown = stage.play(&stage.weir.agent("claude")?, &stage.subject("codex")?, "start")?;
    let refused = shown.lines().filter(|line| line.starts_with("E 42501") && line.contains("weir.")).count();
    assert_eq!((refused, shown.lines().count()), (6, 6), "{shown}");
    // psql's way, which libpq sends as `options`.
    let psql = servers()?.postgres.programs.join("psql");
    let ran = stage.weir.agent("claude")?.program([psql])?.env("PGOPTIONS", "-c weir.subject=x");
    let refused = ran.args(["-XAtq", "-d", &stage.database.address()?, "-c", "SELECT 1"]).run()?.failed()?;
    ensure!(refused.contains("`weir.subject` may not be set"), "{refused}");
    Ok(())
}

#[test]
fn without_identity_parameters_their_names_are_weirs_all_the_same() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| everything(setup, &database))?;
    let agent = weir.agent("claude")?;
    for statement in ["SET weir.subject = 'x'", "SELECT set_config('weir.subject', 'x', false)"] {
        let refused = agent.psql(&database, statement)?.failed()?;
        ensure!(refused.contains("session parameters of that name are Weir's to set alone"), "{refused}");
    }
    // What could set them unseen is a matter of policies here.
    agent.psql(&database, "DO $$ BEGIN END $$")?.succeeded()?;
    Ok(())
}
