//! What an agent's command starts with, and what it cannot do.

use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
            process::ExitStatusExt,
        },
    },
    path::Path,
    process::Stdio,
};

use crate::support::{Daemon, UID, eventually, read_all, spec};
use gateway_daemon::launch::{Exit, LaunchError, Step};
use rustix::process::{Pid, Signal, kill_process};

/// A line of /proc/PID/status.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.expect(name).trim()
}

fn null() -> OwnedFd {
    File::options().read(true).write(true).open("/dev/null").unwrap().into()
}

#[test]
fn a_command_has_no_rights_but_its_users() {
    let daemon = Daemon::start();
    let status = daemon.prints(&["cat", "/proc/self/status"]);
    for caps in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, caps), "0000000000000000", "{caps}");
    }
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    assert_eq!(field(&status, "Seccomp"), "2");
    assert_eq!(field(&status, "Groups"), "");
    assert_eq!(field(&status, "Uid"), format!("{UID}\t{UID}\t{UID}\t{UID}"));
    assert_eq!(field(&status, "Gid"), format!("{UID}\t{UID}\t{UID}\t{UID}"));
    assert_eq!(field(&status, "SigBlk"), "0000000000000000");
    // 32 and 33 are the C library's own; it lets no one change them.
    let ignored = u64::from_str_radix(field(&status, "SigIgn"), 16).unwrap();
    assert_eq!(ignored & !(0b11 << 31), 0);
    assert_eq!(daemon.sh("umask; ulimit -c; ulimit -Hc"), "0022\n0\n0\n");
}

#[test]
fn a_command_is_not_spared_when_memory_runs_out_and_has_a_keyring_of_its_own() {
    let mut daemon = Daemon::start();
    let own = format!("/proc/{}/oom_score_adj", daemon.launcher_pid);
    let spared = "cat /proc/self/oom_score_adj; sh -c 'echo -900 > /proc/self/oom_score_adj' 2>/dev/null || echo no";
    // As in the unit that README has. Who may not spare a process, as in a container, has none that is spared.
    match fs::write(&own, "-900") {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
        written => written.unwrap(),
    }
    assert_eq!(daemon.sh(spared), "0\nno\n");
    // Who is to go first stays so.
    fs::write(&own, "300").unwrap();
    assert_eq!(daemon.sh("cat /proc/self/oom_score_adj"), "300\n");
    // keyctl(2): the number of the session's keyring, and its description, `type;uid;gid;permissions;name`.
    let script = r#"
        my ($call, $number, $describe) = (250, syscall(250, 0, -3, 0), "\0" x 200);
        my $length = syscall($call, 6, $number, $describe, 200);
        print $number, " ", substr($describe, 0, $length - 1), "\n";
        print "keys ", syscall($call, 11, $number, my $keys = "\0" x 200, 200), "\n";"#;
    let keyrings = [daemon.prints(&["perl", "-e", script]), daemon.prints(&["perl", "-e", script])];
    for keyring in &keyrings {
        assert!(keyring.contains("keyring;0;0;") && keyring.contains(";_ses\nkeys 0\n"), "{keyring}");
    }
    assert_ne!(keyrings[0], keyrings[1]);
    daemon.die();
}

#[test]
fn a_command_lives_in_its_cgroup_and_in_a_session_of_its_own() {
    let daemon = Daemon::start();
    let cgroup = daemon.prints(&["cat", "/proc/self/cgroup"]);
    let name = daemon.cgroup.file_name().unwrap().to_str().unwrap();
    assert!(cgroup.lines().any(|line| line == format!("0::/{name}/0")), "{cgroup}");
    // Fields 5 to 7 of stat are its group, session and terminal.
    let stat = daemon.sh("echo $$; cat /proc/$$/stat");
    let (pid, stat) = stat.split_once('\n').unwrap();
    let fields: Vec<_> = stat.split(' ').collect();
    assert_eq!(fields[4..7], [pid, pid, "0"]);
    assert_ne!(fields[3], std::process::id().to_string(), "a child of the daemon");
}

#[test]
fn nothing_but_descriptors_0_to_2_is_inherited() {
    // Without close-on-exec, and before the launcher is split off.
    let leaked = rustix::io::dup(File::open("/etc/passwd").unwrap()).unwrap();
    assert!(!rustix::io::fcntl_getfd(&leaked).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    let daemon = Daemon::start();
    assert_eq!(daemon.sh("ls /proc/$$/fd; true"), "0\n1\n2\n");
    let launcher = format!("/proc/{}", daemon.launcher_pid);
    for descriptor in fs::read_dir(format!("{launcher}/fd")).unwrap() {
        let target = fs::read_link(descriptor.unwrap().path()).unwrap();
        assert_ne!(target, Path::new("/etc/passwd"));
    }
    assert_eq!(fs::read(format!("{launcher}/environ")).unwrap(), b"");
}

#[test]
fn sockets_of_other_families_are_refused_and_of_these_are_not() {
    let daemon = Daemon::start();
    // AF_UNIX, INET, INET6, NETLINK are made; of the others PACKET, RDS, TIPC, RXRPC, VSOCK and SMC lead somewhere.
    let script = r#"
        for my $family (0 .. 63) {
            my $fd = syscall(41, $family, $family == 16 ? 3 : 2, 0);
            print "$family ", $fd >= 0 ? "made" : 0 + $!, "\n";
        }
        syscall(53, 40, 1, 0, my $pair = "\0" x 8); print "pair ", 0 + $!, "\n";
        syscall(41, 0x1_0000_0011, 3, 0); print "high bits ", 0 + $!, "\n";"#;
    let refused = libc::EAFNOSUPPORT;
    let mut expected = String::new();
    for family in 0..64 {
        expected += &match family {
            1 | 2 | 10 | 16 => format!("{family} made\n"),
            _ => format!("{family} {refused}\n"),
        };
    }
    expected += &format!("pair {refused}\nhigh bits {refused}\n");
    assert_eq!(daemon.prints(&["perl", "-e", script]), expected);
    // Where the command has every capability, over a network of its own.
    let inside = ["unshare", "--user", "--map-root-user", "--net", "perl", "-e", script];
    assert_eq!(daemon.prints(&inside), expected);
}

#[test]
fn rings_and_typing_for_others_and_other_calling_conventions_are_refused() {
    let daemon = Daemon::start();
    let script = r#"
        for my $call (425, 426, 427) { syscall($call, 1, 0); print "$call ", 0 + $!, "\n"; }
        for my $command (0x5412, 0x541c, 0x7_0000_5412) {
            my $byte = "x"; syscall(16, 0, $command, $byte); print 0 + $!, "\n";
        }
        my $size = "\0" x 8; syscall(16, 0, 0x5413, $size); print "other ioctl ", 0 + $!, "\n";
        syscall(0x4000_0000 | 39); print "x32 ", 0 + $!, "\n";"#;
    let [eperm, enotty, enosys] = [libc::EPERM, libc::ENOTTY, libc::ENOSYS];
    let expected = format!(
        "425 {eperm}\n426 {eperm}\n427 {eperm}\n{eperm}\n{eperm}\n{eperm}\n\
         other ioctl {enotty}\nx32 {enosys}\n"
    );
    assert_eq!(daemon.prints(&["perl", "-e", script]), expected);
}

/// A program that asks for its pid by i386's `int 0x80` and then exits with 7.
#[cfg(target_arch = "x86_64")]
fn i386_caller() -> Vec<u8> {
    const CODE: [u8; 21] = [
        0xb8, 20, 0, 0, 0, // mov eax, 20: getpid, in i386's numbers
        0xcd, 0x80, // int 0x80
        0xbf, 7, 0, 0, 0, // mov edi, 7
        0xb8, 60, 0, 0, 0, // mov eax, 60: exit
        0x0f, 0x05, // syscall
        0x0f, 0x0b, // ud2
    ];
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version
    elf.extend((BASE + HEADERS).to_le_bytes()); // entry
    elf.extend(64_u64.to_le_bytes()); // program headers
    elf.extend([0; 12]); // no section headers, no flags
    elf.extend([64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // sizes and counts
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, read and execute
    for word in [0, BASE, BASE, HEADERS + 21, HEADERS + 21, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(CODE);
    elf
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_system_call_of_i386_ends_the_process() {
    let daemon = Daemon::start();
    let program = daemon.folder.path().join("i386");
    fs::write(&program, i386_caller()).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let outside = std::process::Command::new(&program).status().unwrap();
    assert_eq!(outside.code(), Some(7), "the program itself is wrong");
    let output = daemon.output(&[program.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(128 + libc::SIGSYS));
}

#[test]
fn covered_paths_are_empty_and_stay_covered_in_a_user_namespace() {
    let hidden = tempfile::tempdir().unwrap();
    let path = |name: &str| hidden.path().join(name).to_str().unwrap().to_owned();
    fs::set_permissions(hidden.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::create_dir(path("runtime")).unwrap();
    fs::write(path("runtime/docker.sock"), "").unwrap();
    let _server = UnixListener::bind(path(".s.PGSQL.5432")).unwrap();
    fs::set_permissions(path(".s.PGSQL.5432"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(path("beside"), "seen").unwrap();
    std::os::unix::fs::symlink(path("runtime"), path("link")).unwrap();
    let [folder, socket, missing] = [path("link"), path(".s.PGSQL.5432"), path("missing")];
    let cover = [&folder, &socket, &missing].map(Into::into).to_vec();
    let daemon = Daemon::covering(|| cover);

    let connect = format!(
        "perl -MIO::Socket::UNIX -e 'print IO::Socket::UNIX->new(Peer => q({socket})) \
         ? qq(connected\\n) : 0 + $!, qq(\\n)'"
    );
    let uncovered = daemon.sh(&format!("cat {}; ls -A {folder}; {connect}", path("beside")));
    assert_eq!(uncovered, format!("seen{}\n", libc::ECONNREFUSED), "covered to begin with");

    let runtime = path("runtime");
    let parent = hidden.path().display();
    let tricks = format!(
        "umount {runtime} {socket}; umount -l {runtime} {socket}; mount -o remount,rw {runtime};
         mkdir /tmp/t$$; mount -t tmpfs t /tmp/t$$; mkdir /tmp/t$$/b /tmp/t$$/o /tmp/t$$/u /tmp/t$$/w
         mount --bind {parent} /tmp/t$$/b && ls -A /tmp/t$$/b/runtime
         mount -t overlay -o lowerdir={parent}:/tmp/t$$/u o /tmp/t$$/o && ls -A /tmp/t$$/o/runtime
         ls -A {runtime}; {connect}"
    );
    let output = daemon.output(&["unshare", "-Urm", "sh", "-c", &tricks]);
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(printed, format!("{}\n", libc::ECONNREFUSED), "{errors}");
    // Otherwise the namespace was not made and nothing was tried.
    assert!(errors.contains("umount"), "{errors}");

    assert_eq!(daemon.sh(&format!("touch {folder}/x 2>/dev/null || echo no")), "no\n");
    assert!(Path::new(&path("runtime/docker.sock")).exists(), "the host sees what it saw");
}

#[test]
fn what_stops_a_command_from_starting_is_named() {
    let daemon = Daemon::start();
    let secret = daemon.folder.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    let failure = |command: &str, cwd: &Path| {
        let output = daemon.run(&[command]).current_dir(cwd).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let root = Path::new("/");
    let (code, message) = failure("no-such-command", root);
    assert_eq!(code, 127);
    assert_eq!(message, "weir: cannot exec `no-such-command`: No such file or directory (os error 2)\n");
    let (code, message) = failure("/etc/passwd", root);
    assert_eq!(code, 126);
    assert_eq!(message, "weir: cannot exec `/etc/passwd`: Permission denied (os error 13)\n");
    let (code, message) = failure("true", &secret);
    assert_eq!(code, 1);
    let expected = format!("weir: cannot enter the folder `{}`: Permission denied (os error 13)\n", secret.display());
    assert_eq!(message, expected);
    assert!(daemon.processes().is_empty());
}

#[test]
fn a_daemon_that_is_not_there_is_said_so() {
    let daemon = Daemon::start();
    let mut run = daemon.run(&["true"]);
    let control = daemon.control();
    drop(daemon);
    let output = run.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let expected = format!(
        "weir: the daemon is not running (nobody answers at `{}`); start it with `weir daemon`\n",
        control.display()
    );
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
}

#[test]
fn the_launcher_itself_refuses_what_must_not_be_passed() {
    let daemon = Daemon::start();
    let cgroup = daemon.own_cgroup();
    let launch = |descriptor: OwnedFd| {
        let stdio = [null(), descriptor, null()];
        daemon.block_on(daemon.launcher().launch(spec(&cgroup, &["true"]), stdio)).map(drop)
    };
    let refused = |result| {
        let Err(LaunchError::Step { step, subject, .. }) = result else { panic!("{result:?}") };
        assert_eq!((step, subject.as_str()), (Step::Descriptors, "1"));
    };
    let (socket, _other) = UnixStream::pair().unwrap();
    refused(launch(socket.into()));
    refused(launch(File::open("/").unwrap().into()));
    let pty = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).unwrap();
    refused(launch(pty));
    assert!(launch(null()).is_ok());
}

#[test]
fn a_run_as_root_without_command_or_without_cgroup_is_refused() {
    let daemon = Daemon::start();
    let cgroup = daemon.own_cgroup();
    let launch = |spec| daemon.block_on(daemon.launcher().launch(spec, [null(), null(), null()])).map(drop);
    let mut root = spec(&cgroup, &["true"]);
    root.uid = 0;
    assert!(matches!(launch(root), Err(LaunchError::Root)));
    assert!(matches!(launch(spec(&cgroup, &[])), Err(LaunchError::NoCommand)));
    for cgroup in [cgroup.join("missing"), daemon.folder.path().to_owned()] {
        let Err(LaunchError::Step { step, subject, .. }) = launch(spec(&cgroup, &["true"])) else {
            panic!("launched in {}", cgroup.display());
        };
        assert_eq!((step, subject), (Step::Cgroup, cgroup.display().to_string()));
    }
}

#[test]
fn arguments_that_are_too_long_are_refused_before_anything_starts() {
    let daemon = Daemon::start();
    let long = "x".repeat(100_000);
    let output = daemon.output(&[&["true"][..], &[long.as_str(); 12]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("longer than 1048576"));
}

#[test]
fn the_status_is_the_commands() {
    let daemon = Daemon::start();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)] {
        assert_eq!(daemon.output(&["sh", "-c", script]).status.code(), Some(code), "{script}");
    }
}

#[test]
fn every_byte_passes_through_pipes_and_sockets() {
    let daemon = Daemon::start();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let (to, stdin) = UnixStream::pair().unwrap();
    let (from, stdout) = UnixStream::pair().unwrap();
    let ends: [(OwnedFd, OwnedFd, OwnedFd, OwnedFd); 2] = {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let ((stdin_pipe, to_pipe), (from_pipe, stdout_pipe)) = (pipe(), pipe());
        [(to_pipe, stdin_pipe, from_pipe, stdout_pipe), (to.into(), stdin.into(), from.into(), stdout.into())]
    };
    for (to, stdin, from, stdout) in ends {
        let mut run = daemon.run(&["cat"]);
        let mut child = run.stdin(stdin).stdout(stdout).spawn().unwrap();
        drop(run);
        let sent = bytes.clone();
        let writing = std::thread::spawn(move || File::from(to).write_all(&sent).unwrap());
        let got = read_all(File::from(from));
        writing.join().unwrap();
        assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn a_socket_of_the_callers_is_never_the_commands() {
    let daemon = Daemon::start();
    let (mine, stdin) = UnixStream::pair().unwrap();
    let (_other, stderr) = UnixStream::pair().unwrap();
    let mut run = daemon.run(&["sh", "-c", "readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2"]);
    run.stdin(OwnedFd::from(stdin)).stderr(OwnedFd::from(stderr)).stdout(Stdio::piped());
    let output = run.output().unwrap();
    drop(mine);
    let links = String::from_utf8(output.stdout).unwrap();
    assert_eq!(links.lines().filter(|link| link.starts_with("pipe:")).count(), 3, "{links}");
}

#[test]
fn signals_reach_the_command() {
    let daemon = Daemon::start();
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::USR1] {
        let script = "trap 'echo got; exit 3' TERM HUP INT USR1; echo ready; while :; do sleep 0.05; done";
        let mut run = daemon.run(&["sh", "-c", script]);
        let mut child = run.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(&mut stdout, &mut ready).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(read_all(stdout), b"got\n", "{signal:?}");
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}

#[test]
fn a_run_ends_with_its_caller_even_if_it_does_not_want_to() {
    let daemon = Daemon::start();
    let script = "trap '' HUP TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = daemon.run(&["sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    assert!(!daemon.processes().is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the run ends", || daemon.processes().is_empty().then_some(()));
}

#[test]
fn a_run_whose_first_thread_has_ended_ends_with_its_caller_as_well() {
    let daemon = Daemon::start();
    let script = "import ctypes, threading, time
threading.Thread(target=lambda: time.sleep(1000)).start()
ctypes.CDLL(None).syscall(60 if __import__('platform').machine() == 'x86_64' else 93, 0)";
    let mut child = daemon.run(&["python3", "-c", script]).spawn().unwrap();
    eventually("its first thread has ended", || {
        let pid = *daemon.processes().first()?;
        fs::read_to_string(format!("/proc/{pid}/stat")).ok()?.contains(") Z ").then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the run ends", || daemon.processes().is_empty().then_some(()));
}

#[test]
fn the_launcher_ends_with_the_daemon_and_running_commands_do_not() {
    let mut daemon = Daemon::start();
    let mut child = daemon.run(&["sleep", "1000"]).spawn().unwrap();
    let command = eventually("the command runs", || daemon.processes().first().copied());
    daemon.die();
    let stat = format!("/proc/{}/stat", daemon.launcher_pid);
    // Its parent, this test, does not wait for it: a zombie has ended.
    eventually("the launcher ends", || {
        let gone = fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
        gone.then_some(())
    });
    assert_eq!(daemon.processes(), [command]);
    assert!(!child.wait().unwrap().success(), "weir run says that the daemon is gone");
}

#[test]
fn a_launcher_that_dies_is_noticed_and_runs_are_given_up() {
    let daemon = Daemon::start();
    let cgroup = daemon.own_cgroup();
    let stdio = || [null(), null(), null()];
    let spec = spec(&cgroup, &["sleep", "1000"]);
    let mut running = daemon.block_on(daemon.launcher().launch(spec.clone(), stdio())).unwrap();
    let pid = Pid::from_raw(i32::try_from(daemon.launcher_pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    daemon.block_on(daemon.launcher().gone());
    assert_eq!(daemon.block_on(running.wait()), Exit::Lost);
    let again = daemon.block_on(daemon.launcher().launch(spec, stdio()));
    assert!(matches!(again, Err(LaunchError::Gone)));
}

#[test]
fn many_runs_at_once_keep_their_statuses_apart() {
    let daemon = Daemon::start();
    let runs: Vec<_> = (0..40).map(|n| (n, daemon.run(&["sh", "-c", &format!("exit {n}")]).spawn().unwrap())).collect();
    for (n, mut run) in runs {
        let status = run.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(n), None));
    }
}

#[test]
fn the_launcher_verb_is_for_the_daemon_alone() {
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_weir")).arg("launcher").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = "weir: `weir launcher` is started by `weir daemon` alone\n";
    assert_eq!(String::from_utf8(output.stderr).unwrap(), message);
}
