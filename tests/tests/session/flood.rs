//! One agent's flood (connections, pipelines, results that nobody reads) leaves another agent's statements as fast as they
//! were.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::{Agent, Database, Weir, rounds, servers, wait_until};

use crate::player::{Style, words};

const FLOOD: &str = include_str!("flood.py");
const POLICY: &str = r#"
    @id("all")
    @description("For the flood.")
    permit (principal in Group::"corp/all", action in [Action::"read", Action::"session"], resource);
"#;
/// Sends what it is asked for and tells, in microseconds, below what so many thousandths of the answers came.
const MEASURE: &str = r#"
def measure():
    c = Client()
    c.style = "none"
    import time
    for line in sys.stdin:
        count, thousandths = map(int, line.split())
        took = []
        for number in range(count):
            begun = time.perf_counter()
            c.send(query(f"SELECT name FROM customers WHERE id = {number % 100}"))
            while c.take()[0] != b"Z":
                pass
            took.append(time.perf_counter() - begun)
            time.sleep(0.002)
        took.sort()
        print(round(took[count * thousandths // 1000] * 1e6), flush=True)
"#;
/// Sessions that an agent may have here: what the server can give, and another agent's beside them.
const SESSIONS: u32 = 32;
/// Differences below it are the machine's.
const NOISE_MICROSECONDS: u64 = 2_000;

/// The agent that works, with one session for all of the test.
struct Worker {
    child: Child,
    asks: ChildStdin,
    told: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    fn start(agent: &Agent<'_>, database: &Database) -> Result<Self> {
        let mut command = agent.program(words(MEASURE, "measure", database, Style::Brief)?)?.into_command();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let asks = child.stdin.take().context("no input")?;
        let mut told = BufReader::new(child.stdout.take().context("no output")?).lines();
        ensure!(told.next().context("it ended")?? == "Z I", "no session");
        Ok(Self { child, asks, told })
    }

    /// The 99th percentile of so many statements, in microseconds.
    fn p99(&mut self, statements: u32) -> Result<u64> {
        writeln!(self.asks, "{statements} 990")?;
        Ok(self.told.next().context("it ended")??.trim().parse()?)
    }

    fn p99s(&mut self, measures: u32) -> Result<Vec<u64>> {
        (0..measures).map(|_| self.p99(300)).collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A flood that goes on until this value is dropped.
struct Flood(Child);

impl Flood {
    fn start(agent: &Agent<'_>, database: &Database, connections: u32) -> Result<Self> {
        let postgres = &servers()?.postgres;
        let program = servers()?.folder.join(format!("{}-flood.py", database.name));
        std::fs::write(&program, FLOOD)?;
        let program = program.to_str().context("the folder of the tests isn't UTF-8")?;
        let (port, connections, sessions) = (postgres.port.to_string(), connections.to_string(), SESSIONS.to_string());
        let words = ["/usr/bin/python3", program, "127.0.0.1", &port, &database.name, &postgres.role];
        let mut command = agent.program(words)?.args([&connections, &sessions]).into_command();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let told = BufReader::new(child.stdout.take().context("no output")?).lines().next();
        let flood = Self(child);
        ensure!(told.context("the flood ended")?? == "flooding", "the flood did not begin");
        Ok(flood)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[test]
fn a_flood_of_one_agent_leaves_another_s_p99_within_twice_of_its_quiet_value() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| {
        setup.policy("all.cedar", POLICY)?;
        setup.agent("greedy", &["all"])?;
        setup.agent("modest", &["all"])?;
        setup.set("limits.agent.connections", i64::from(SESSIONS))?;
        setup.connection("orders", &database)
    })?;
    let (greedy, modest) = (weir.agent("greedy")?, weir.agent("modest")?);
    let connections = rounds(200, 1000);
    let mut worker = Worker::start(&modest, &database)?;
    worker.p99(100)?;
    let measures = rounds(5, 15);
    let mut quiet = worker.p99s(measures)?;
    // One flood for all: an agent's connections have their turns, and a second flood would wait for those of the first.
    let flood = Flood::start(&greedy, &database, connections)?;
    let flooded = worker.p99s(measures)?;
    drop(flood);
    wait_until("the flood is over", Duration::from_secs(60), || {
        let agents = weir.weir(["agent", "list", "--json"])?.succeeded()?;
        let rows = agents.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>()?;
        Ok(rows.iter().any(|row| row["agent"] == "greedy" && row["sessions"] == 0).then_some(()))
    })?;
    quiet.extend(worker.p99s(measures)?);
    eprintln!("p99 in microseconds: quiet {quiet:?}, flooded {flooded:?}");
    let (quiet, flooded) = (median(quiet), median(flooded));
    assert!(flooded <= 2 * quiet.max(NOISE_MICROSECONDS), "in microseconds: quiet {quiet}, flooded {flooded}");
    let log = weir.weir(["log", "--json"])?.succeeded()?;
    assert!(log.contains("32 sessions open, its limit `connections`"), "the refusals are on the record");
    Ok(())
}
