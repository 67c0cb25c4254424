//! `weir run` at a terminal: each test holds the other side of a pty of its own, as a terminal emulator does.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus},
    sync::mpsc::{Receiver, channel},
    time::Instant,
};

use crate::support::{Daemon, PATIENCE, UID, eventually};
use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcgetattr, tcsetwinsize},
};

/// A person's terminal, with a program on it that leads the session.
struct Terminal {
    master: File,
    slave: OwnedFd,
    output: Receiver<Vec<u8>>,
    /// What has come and was not looked for yet.
    seen: String,
    child: Child,
}

impl Terminal {
    /// Starts `command` with a terminal of 24 rows and 80 columns.
    fn start(command: &Command) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        tcsetwinsize(&slave, size(24, 80)).unwrap();
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        session.current_dir("/").env("PATH", "/usr/bin:/bin").env("TERM", "xterm").env("PS1", "");
        let end = || slave.try_clone().unwrap();
        let child = session.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let master = File::from(master);
        let (sender, output) = channel();
        let mut reader = master.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut chunk = [0; 65_536];
            while let Ok(read @ 1..) = reader.read(&mut chunk) {
                if sender.send(chunk[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { master, slave, output, seen: String::new(), child }
    }

    /// An interactive shell, in which `weir` is the command that runs the rest of its line.
    fn shell(daemon: &Daemon) -> Self {
        let run = daemon.run(&[]);
        let words: Vec<_> =
            std::iter::once(run.get_program()).chain(run.get_args()).map(|word| word.to_str().unwrap()).collect();
        let mut shell = Command::new("bash");
        shell.args(["--norc", "--noprofile", "--noediting", "-i"]);
        let mut terminal = Self::start(&shell);
        terminal.types(&format!("stty -echo; weir() {{ {} \"$@\"; }}; echo at''work\n", words.join(" ")));
        terminal.shows("atwork");
        terminal
    }

    fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` is shown, and gives all that was shown up to it.
    fn shows(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let left = until.saturating_duration_since(Instant::now());
            let Ok(more) = self.output.recv_timeout(left) else {
                panic!("`{text}` is not shown, but: {:?}", self.seen);
            };
            self.seen += &String::from_utf8_lossy(&more);
        }
    }

    fn ends(&mut self) -> ExitStatus {
        eventually("the program on the terminal ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

#[test]
fn the_agent_has_a_terminal_of_its_own_and_never_the_callers() {
    let daemon = Daemon::start();
    let script = "tty; ls -1 /proc/$$/fd; stat -c '%u %a' $(tty); ls -l /proc/$$/fd; echo e''nd";
    let mut terminal = Terminal::start(&daemon.run(&["sh", "-c", script]));
    let mine = rustix::termios::ttyname(&terminal.slave, Vec::new()).unwrap();
    let mine = mine.to_str().unwrap();
    let shown = terminal.shows("end");
    let name = shown.lines().next().unwrap();
    assert!(name.starts_with("/dev/pts/") && name != mine, "{name}, {mine}");
    assert!(shown.contains(&format!("\r\n0\r\n1\r\n2\r\n{UID} 6")), "{shown}");
    assert!(!shown.contains(&format!("{mine}\r\n")), "{shown}");
    assert!(terminal.ends().success());
}

#[test]
fn typing_into_the_terminal_for_its_reader_is_refused() {
    let daemon = Daemon::start();
    let script = r#"my $x = "x"; for my $command (0x5412, 0x541c) {
        syscall(16, 0, $command, $x); print 0 + $!, ";"; } print "end""#;
    let mut terminal = Terminal::start(&daemon.run(&["perl", "-e", script]));
    assert_eq!(terminal.shows("end"), format!("{0};{0};end", libc::EPERM));
}

#[test]
fn the_window_size_is_seen_and_its_changes_as_well() {
    let daemon = Daemon::start();
    let script = "trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done";
    let mut terminal = Terminal::start(&daemon.run(&["sh", "-c", script]));
    terminal.shows("24 80");
    tcsetwinsize(&terminal.slave, size(50, 132)).unwrap();
    terminal.shows("50 132");
}

#[test]
fn ctrl_c_ends_what_is_in_the_foreground_and_nothing_else() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::start(&daemon.run(&["bash", "--norc", "--noediting", "-i"]));
    terminal.types("stty -echo; sh -c 'echo rea\"\"dy; exec sleep 1000'\n");
    terminal.shows("ready");
    terminal.types("\x03");
    // Ctrl-C discards what was typed ahead.
    eventually("sleep has ended", || (daemon.processes().len() == 2).then_some(()));
    terminal.types("echo status $?\n");
    terminal.shows("status 130");
    terminal.types("exit 5\n");
    assert_eq!(terminal.ends().code(), Some(5));
}

#[test]
fn ctrl_c_at_a_single_command_ends_it_as_the_signal_does() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::start(&daemon.run(&["sh", "-c", "echo re''ady; exec sleep 1000"]));
    terminal.shows("ready");
    terminal.types("\x03");
    assert_eq!(terminal.ends().code(), Some(130));
}

#[test]
fn ctrl_z_stops_the_command_with_its_caller_and_fg_wakes_both() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::shell(&daemon);
    let cooked = tcgetattr(&terminal.slave).unwrap();
    terminal.types("weir sh -c 'echo re\"\"ady; while read line; do echo \"<$line>\"; done'\n");
    terminal.shows("ready");
    for round in ["one", "two"] {
        terminal.types(&format!("{round}\n"));
        terminal.shows(&format!("<{round}>"));
        terminal.types("\x1a");
        terminal.shows("Stopped");
        terminal.types("echo shell: $((40 + 2))\n");
        terminal.shows("shell: 42");
        let again = tcgetattr(&terminal.slave).unwrap();
        assert_eq!(again.local_modes, cooked.local_modes, "the terminal is given back");
        let stopped = daemon.processes().into_iter().any(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.contains(") T ")
        });
        assert!(stopped, "the command goes on behind the shell's back");
        terminal.types("fg\n");
    }
    terminal.types("three\n");
    terminal.shows("<three>");
    terminal.types("\x04");
    eventually("the command has ended", || daemon.processes().is_empty().then_some(()));
    terminal.types("echo status $?\n");
    terminal.shows("status 0");
}

#[test]
fn a_full_screen_program_works_and_the_terminal_is_as_before() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::shell(&daemon);
    let before = tcgetattr(&terminal.slave).unwrap();
    terminal.types("weir less /etc/services; echo status $?\n");
    terminal.shows("Network services");
    terminal.types("G");
    terminal.shows("(END)");
    terminal.types("q");
    terminal.shows("status 0");
    terminal.types("weir vi -u NONE -n /tmp/no-such-file; echo status $?\n");
    terminal.shows("~");
    terminal.types("iwritten\x1b:q!\n");
    terminal.shows("status 0");
    terminal.types("weir top -d 1; echo status $?\n");
    terminal.shows("PID");
    terminal.types("q");
    terminal.shows("status 0");
    let after = tcgetattr(&terminal.slave).unwrap();
    assert_eq!(after.local_modes, before.local_modes);
    assert_eq!(after.input_modes, before.input_modes);
    assert_eq!(after.output_modes, before.output_modes);
}

#[test]
fn all_output_is_shown_however_much_and_however_late() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::start(&daemon.run(&["seq", "1", "200000"]));
    let shown = terminal.shows("\r\n200000\r\n");
    assert_eq!(shown.lines().count(), 200_000);
    assert!(terminal.ends().success());
    for _ in 0..20 {
        let mut terminal = Terminal::start(&daemon.run(&["sh", "-c", "seq 1 300; exit 3"]));
        assert_eq!(terminal.shows("\r\n300\r\n").lines().count(), 300);
        assert_eq!(terminal.ends().code(), Some(3));
    }
}

#[test]
fn a_pipe_is_passed_as_it_is_and_the_terminal_beside_it_is_not() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::shell(&daemon);
    terminal.types("echo in | weir sh -c 'cat; readlink /proc/$$/fd/0 /proc/$$/fd/1' | cat; echo e''nd\n");
    let shown = terminal.shows("end");
    assert_eq!(shown.matches("pipe:[").count(), 2, "{shown}");
    assert!(shown.contains("in\r\n"), "{shown}");
    // A pager at the end of the pipe gets the keys; the command, which asks for none, takes none.
    terminal.types("weir sh -c 'seq 1 100; sleep 0.3' | less; echo st''atus\n");
    terminal.shows("\n:");
    terminal.types("G");
    terminal.shows("(END)");
    terminal.types("q");
    terminal.shows("status");
}

#[test]
fn a_command_in_a_pipeline_that_asks_for_keys_gets_them() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::shell(&daemon);
    terminal.types("weir sh -c 'read line; echo \"<$line>\"' | cat; echo e''nd\n");
    eventually("the command runs", || (!daemon.processes().is_empty()).then_some(()));
    terminal.types("keys\n");
    assert!(terminal.shows("end").contains("<keys>"));
}

#[test]
fn a_run_in_the_background_works_and_comes_to_the_front() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::shell(&daemon);
    terminal.types("weir sh -c 'echo be''gun; read line; echo \"<$line>\"' &\n");
    terminal.shows("begun");
    // bash tells of a stopped job before its next prompt.
    eventually("the job stops for want of the terminal", || {
        terminal.types("jobs; echo jo''bs\n");
        terminal.shows("jobs").contains("Stopped").then_some(())
    });
    terminal.types("fg\n");
    terminal.types("keys\n");
    terminal.shows("<keys>");
}

#[test]
fn the_status_and_signals_are_the_commands() {
    let daemon = Daemon::start();
    for (script, code) in [("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        let mut terminal = Terminal::start(&daemon.run(&["sh", "-c", script]));
        assert_eq!(terminal.ends().code(), Some(code), "{script}");
    }
    let script = "trap 'exit 9' TERM; echo re''ady; while :; do sleep 0.05; done";
    let mut terminal = Terminal::start(&daemon.run(&["sh", "-c", script]));
    terminal.shows("ready");
    kill_process(Pid::from_child(&terminal.child), Signal::TERM).unwrap();
    assert_eq!(terminal.ends().code(), Some(9));
}

#[test]
fn an_agent_that_kills_its_sessions_leader_ends_its_own_run() {
    let daemon = Daemon::start();
    let script = "ls /proc/$PPID/fd 2>/dev/null || echo sealed; kill -9 $PPID; sleep 1000";
    let mut terminal = Terminal::start(&daemon.run(&["sh", "-c", script]));
    terminal.shows("sealed");
    assert_eq!(terminal.ends().code(), Some(137));
    eventually("nothing is left", || daemon.processes().is_empty().then_some(()));
}

#[test]
fn a_command_that_cannot_start_leaves_the_terminal_alone() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::start(&daemon.run(&["no-such-command"]));
    terminal.shows("weir: cannot exec `no-such-command`: No such file or directory (os error 2)\r\n");
    assert_eq!(terminal.ends().code(), Some(127));
}

#[test]
fn a_terminal_that_is_closed_hangs_up_the_command() {
    let daemon = Daemon::start();
    let script = "trap 'exit 1' HUP; echo re''ady; while :; do sleep 0.05; done";
    let mut terminal = Terminal::start(&daemon.run(&["sh", "-c", script]));
    terminal.shows("ready");
    terminal.child.kill().unwrap();
    eventually("the command ends", || daemon.processes().is_empty().then_some(()));
}
