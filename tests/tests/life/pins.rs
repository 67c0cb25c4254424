//! What is pinned keeps refusing without a daemon, is adopted by the next, and goes by `weir detach` alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::Result;
use end_to_end::{Weir, wait_until};

use crate::stage::{CLAUDE, Canary, PYTHON, READ};

/// Connects again and again, and keeps three counts in a file: made, refused by nobody being there, refused by the kernel.
const CONNECTS: &str = r#"
import errno, os, socket, sys

made = gone = refused = 0
with open(sys.argv[2], "r+") as file:
    while True:
        with socket.socket() as s:
            # No port is held back by those before it.
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            try:
                s.connect(("127.0.0.1", int(sys.argv[1])))
                made += 1
            except ConnectionRefusedError:
                gone += 1
            except PermissionError:
                refused += 1
            except OSError as error:
                # Reset between its SYN and the program's look at it, when the listener dies.
                if error.errno not in (errno.ECONNRESET, errno.ENOTCONN): raise
        os.pwrite(file.fileno(), f"{made} {gone} {refused} \n".encode(), 0)
"#;

const PROGRESS: Duration = Duration::from_secs(30);
/// How often the daemon goes and comes.
const ROUNDS: usize = 3;

/// A process that connects for as long as this value lives.
struct Connects {
    process: Child,
    counts: PathBuf,
}

/// What came of its connects so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    made: u64,
    gone: u64,
    refused: u64,
}

impl Connects {
    fn start(
        folder: &Path,
        name: &str,
        run: impl FnOnce([&str; 5]) -> Result<std::process::Command>,
        port: u16,
    ) -> Result<Self> {
        let counts = folder.join(format!("{name}.counts"));
        fs::write(&counts, "0 0 0 \n")?;
        fs::set_permissions(&counts, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        let mut command = run([PYTHON, "-c", CONNECTS, &port.to_string(), &counts.display().to_string()])?;
        let process = command.stdin(Stdio::null()).spawn()?;
        Ok(Self { process, counts })
    }

    fn counts(&self) -> Result<Counts> {
        let text = fs::read_to_string(&self.counts)?;
        let mut numbers = text.split_whitespace().map(str::parse);
        let mut next = || numbers.next().transpose().map(Option::unwrap_or_default);
        Ok(Counts { made: next()?, gone: next()?, refused: next()? })
    }

    /// Waits until `grown` is true of the counts now and those then.
    fn wait(&self, what: &str, grown: impl Fn(Counts, Counts) -> bool) -> Result<()> {
        let then = self.counts()?;
        wait_until(what, PROGRESS, || Ok(grown(self.counts()?, then).then_some(())))
    }
}

impl Drop for Connects {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[test]
fn no_connect_gets_round_while_daemons_come_and_go_and_detach_takes_all_away() -> Result<()> {
    let canary = Canary::start()?;
    let mut weir = Weir::start(|setup| {
        setup.policy("read.cedar", READ)?;
        setup.agent(CLAUDE, &["readers"])?;
        canary.declare(setup, "canary")
    })?;
    let (folder, port) = (weir.setup().folder().to_owned(), canary.address.port());
    let agent =
        Connects::start(&folder, "agent", |words| Ok(weir.agent(CLAUDE)?.program(words)?.into_command()), port)?;
    let outside = |words: [&str; 5]| Ok(weir.setup().scope().program("outside", words)?.into_command());
    let outsider = Connects::start(&folder, "outsider", outside, port)?;
    agent.wait("an agent's connects are made", |now, then| now.made > then.made + 20)?;
    outsider.wait("an outsider's are refused", |now, then| now.refused > then.refused + 20)?;
    for round in 0..ROUNDS {
        if round % 2 == 0 {
            weir.kill()?
        } else {
            weir.stop()?
        }
        agent.wait("without a daemon, nobody is there", |now, then| now.gone > then.gone + 100)?;
        outsider.wait("without a daemon, outsiders are refused", |now, then| now.refused > then.refused + 100)?;
        weir.start_again(&[])?;
        agent.wait("the next daemon takes them", |now, then| now.made > then.made + 20)?;
        outsider.wait("and refuses outsiders", |now, then| now.refused > then.refused + 20)?;
        assert_eq!(canary.reached(), 0, "a connect got round Weir in round {round}");
    }
    assert_eq!(outsider.counts()?.made, 0);

    let refused = weir.weir(["detach"])?.failed()?;
    assert!(refused.contains("the daemon runs"), "{refused}");
    weir.stop()?;
    assert_eq!(canary.reached(), 0);
    let pins = weir.setup().scope().pins.join("weir");
    let taken = weir.weir(["detach"])?.succeeded()?;
    for what in ["link_connect4", "link_connect6", "link_carry_note", "map_"] {
        assert!(taken.contains(what), "{what} is not in:\n{taken}");
    }
    assert!(!pins.exists(), "{} is left", pins.display());
    outsider.wait("nothing is refused any more", |now, then| now.made > then.made + 20)?;
    wait_until("what connects reaches the server", Duration::from_secs(20), || {
        Ok((canary.reached() > 0).then_some(()))
    })?;
    let nothing = weir.weir(["detach"])?.succeeded()?;
    assert!(nothing.contains("nothing was attached"), "{nothing}");
    Ok(())
}
