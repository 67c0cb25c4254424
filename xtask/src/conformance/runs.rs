//! The suite, run directly and through Weir: each time on a new cluster, by the same Unix user, at the same paths.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{self, TempDir, random_word, step};
use crate::servers::{Cgroup, Declared, Idp, Person, Postgres, Purpose, User, Weir, give_to};
use crate::setup::regress::Suite;

const AGENT: &str = "regress";
const USER: &str = "weir-conformance";
const AS_USER: [&str; 5] = ["--reuid", USER, "--regid", USER, "--init-groups"];
const DATABASE: &str = "regression";
/// The cluster's superuser: the suite makes roles, loads libraries and writes files on the server.
const ROLE: &str = "postgres";
const LISTENER_PORT: u16 = 944;

/// Whatever Weir can forward is permitted, what it can't place (`unknown`) as well.
const POLICY: &str = r#"@id("everything")
@description("The regression suite may do all that can be done.")
permit (principal in Group::"corp/everything", action, resource);
"#;

/// How the suite reaches the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Weir,
}

impl Way {
    /// The folder of its results.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Weir => "weir",
        }
    }
}

/// Runs the suite both ways, and puts the results into folders of `results`. `only`: the tests that go through Weir, all
/// when there is none; what the others set up they need.
pub(super) fn both(suite: &Suite, program: &Path, only: &[String], results: &Path) -> Result<()> {
    for way in [Way::Direct, Way::Weir] {
        step(&format!("suite, {}", way.name()), || {
            // One folder after the other has the same name: paths stand in what the suite prints.
            let folder = TempDir::new("conformance")?;
            let stage = Stage::set(&folder, way, program)?;
            let ran = stage.run(suite, only, results);
            if let (Err(_), Some(weir)) = (&ran, &stage.weir) {
                eprintln!("log of the daemon:\n{}", weir.log());
            }
            ran
        })?;
    }
    Ok(())
}

/// A server of its own, with a Weir before it or without.
struct Stage {
    // In the order in which they are dropped.
    weir: Option<Weir>,
    _scope: Option<Cgroup>,
    _idp: Option<Idp>,
    postgres: Postgres,
    output: PathBuf,
    way: Way,
    _user: User,
}

impl Stage {
    fn set(folder: &TempDir, way: Way, program: &Path) -> Result<Self> {
        let folder = folder.path();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        let user = User::make(USER)?;
        let output = folder.join("output");
        // The server writes files there, and the client.
        for path in [&output, &output.join("results")] {
            fs::create_dir(path)?;
            give_to(USER, path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
        }
        let postgres = Postgres::start(&folder.join("postgres"), Purpose::Conformance)?;
        for statement in DATABASE_AS_PG_REGRESS_MAKES_IT {
            postgres.sql("postgres", statement)?;
        }
        let mut stage = Self { weir: None, _scope: None, _idp: None, postgres, output, way, _user: user };
        if way == Way::Weir {
            stage.start_weir(folder, program)?;
        }
        Ok(stage)
    }

    fn start_weir(&mut self, folder: &Path, program: &Path) -> Result<()> {
        let person = Person { name: AGENT, password: &random_word()?, groups: &["everything"] };
        let idp = Idp::start(folder.join("idp"), std::slice::from_ref(&person))?;
        let policies = folder.join("policies");
        fs::create_dir(&policies)?;
        fs::write(policies.join("everything.cedar"), POLICY)?;
        let scope = Cgroup::make("/weir-conformance")?;
        let declared = Declared {
            scope: &scope.name,
            listener_port: LISTENER_PORT,
            policies: &policies,
            idp: &idp,
            agent: AGENT,
            user: USER,
            token: &idp.token(&person)?,
            postgres: &self.postgres,
            database: DATABASE,
            role: ROLE,
            password: "asked by nobody",
            tls: "disable",
            other: None,
        };
        self.weir = Some(Weir::start(program, folder.join("weir"), &declared, &[])?);
        (self._scope, self._idp) = (Some(scope), Some(idp));
        Ok(())
    }

    /// Runs it, and moves the results. That tests fail by the suite's own expectation says nothing: the locale is
    /// another, and the version of a library.
    fn run(&self, suite: &Suite, only: &[String], results: &Path) -> Result<()> {
        let mut command = match &self.weir {
            Some(weir) if only.is_empty() => {
                let mut command = weir.run_as(AGENT);
                command.arg(&suite.pg_regress);
                command
            }
            // Root starts the psql of each test: as the agent, or past Weir.
            Some(weir) => {
                let script = self.output.join("launcher");
                fs::write(&script, launcher(&process::shown(&weir.run_as(AGENT)), only))?;
                let mut command = Command::new(&suite.pg_regress);
                command.arg(format!("--launcher=sh {}", script.display()));
                command
            }
            None => {
                let mut command = Command::new("setpriv");
                command.args(AS_USER).arg(&suite.pg_regress);
                command
            }
        };
        command.args(["--use-existing", "--host=127.0.0.1", "--user", ROLE]);
        command.arg(format!("--port={}", self.postgres.port)).arg(format!("--dbname={DATABASE}"));
        command.arg("--bindir").arg(&self.postgres.bin).arg("--dlpath").arg(&suite.libraries);
        command.arg("--inputdir").arg(&suite.input).arg("--outputdir").arg(&self.output);
        // In the groups that are made to run side by side. One after the other takes hours through Weir: after each change
        // of the schema it reads the catalogues anew, once for all sessions that wait for it.
        command.arg("--schedule").arg(suite.input.join("parallel_schedule"));
        command.current_dir(&self.output);
        let status = process::status(&mut command)?;
        process::check_signals()?;
        let code = status.code().context("pg_regress was killed")?;
        ensure!(code < 2, "pg_regress could not run the tests: {status}");
        keep(&self.output.join("results"), &results.join(self.way.name()))
    }
}

/// A script for pg_regress, which names the test in a variable. No word of it has a blank or a quote.
fn launcher(run: &str, only: &[String]) -> String {
    format!(
        "case ' {} ' in\n*\" ${{PGAPPNAME#pg_regress/}} \"*) exec {run} \"$@\";;\n*) exec setpriv {} \"$@\";;\nesac\n",
        only.join(" "),
        AS_USER.join(" ")
    )
}

/// Copies the tests' outputs, and nothing else that the suite wrote there.
fn keep(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "out") {
            fs::copy(&path, to.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}

/// What pg_regress does with a database that it makes itself.
const DATABASE_AS_PG_REGRESS_MAKES_IT: [&str; 7] = [
    "CREATE DATABASE regression TEMPLATE template0",
    "ALTER DATABASE regression SET lc_messages TO 'C'",
    "ALTER DATABASE regression SET lc_monetary TO 'C'",
    "ALTER DATABASE regression SET lc_numeric TO 'C'",
    "ALTER DATABASE regression SET lc_time TO 'C'",
    "ALTER DATABASE regression SET bytea_output TO 'hex'",
    "ALTER DATABASE regression SET timezone_abbreviations TO 'Default'",
];
