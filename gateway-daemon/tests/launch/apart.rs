//! What one run can do to another: nothing, of another user or of the same, where the kernel has Landlock's scopes.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram, UnixListener},
    },
    path::PathBuf,
};

use gateway_daemon::launch::{Apartness, Exit, RunSpec, Running, apartness};
use rustix::process::Signal;

use crate::support::{Daemon, UID, read_all, spec};

const PYTHON: &str = "/usr/bin/python3";

/// An agent with a secret in its memory, environment and files, that serves an abstract socket. Says its process and the
/// secret's address; ends with its input.
const VICTIM: &str = r"
import ctypes, os, socket, sys
secret = ctypes.create_string_buffer(b'the secret')
listener = socket.socket(socket.AF_UNIX)
listener.bind('\0' + sys.argv[1])
listener.listen()
print(os.getpid(), ctypes.addressof(secret), flush=True)
sys.stdin.read()
";

/// What another agent tries, each with what came of it.
const INTRUDER: &str = r"
import ctypes, errno, os, signal, socket, sys
pid, address, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
libc = ctypes.CDLL(None, use_errno=True)

def told(what, attempt):
    try:
        result = attempt()
        print(what, 'done' if result is None else result)
    except OSError as error:
        print(what, errno.errorcode[error.errno])

def call(*words):
    result = libc.syscall(*(ctypes.c_long(word) if isinstance(word, int) else word for word in words))
    if result < 0:
        raise OSError(ctypes.get_errno(), '')

class Vector(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]

def vm_read():
    room = ctypes.create_string_buffer(10)
    mine, theirs = Vector(ctypes.addressof(room), 10), Vector(address, 10)
    call(310, pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)
    return room.raw.decode().replace(' ', '_')

def memory():
    with open(f'/proc/{pid}/mem', 'rb') as file:
        file.seek(address)
        return file.read(10).decode().replace(' ', '_')

def environment():
    return 'read' if open(f'/proc/{pid}/environ', 'rb').read() else 'empty'

def taken():
    pidfd = os.pidfd_open(pid)
    call(438, pidfd, 0, 0)

def abstract():
    socket.socket(socket.AF_UNIX).connect('\0' + name)

told('probe', lambda: os.kill(pid, 0))
told('signal', lambda: os.kill(pid, signal.SIGCONT))
told('pidfd', lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGCONT))
told('trace', lambda: call(101, 0x4206, pid, None, None))  # PTRACE_SEIZE
told('vm', vm_read)
told('mem', memory)
told('environ', environment)
told('maps', lambda: 'read' if open(f'/proc/{pid}/maps').read() else 'empty')
told('fd', lambda: 'read' if os.readlink(f'/proc/{pid}/fd/0') else 'empty')
told('cwd', lambda: os.readlink(f'/proc/{pid}/cwd'))
told('exe', lambda: 'read' if os.readlink(f'/proc/{pid}/exe') else 'empty')
told('fd of', taken)
told('abstract', abstract)
";

/// What [`INTRUDER`] tries.
const ATTEMPTS: [&str; 13] =
    ["probe", "signal", "pidfd", "trace", "vm", "mem", "environ", "maps", "fd", "cwd", "exe", "fd of", "abstract"];

/// A run of a user, with pipes for its input and output.
struct Piped {
    running: Running,
    _input: OwnedFd,
    output: OwnedFd,
}

fn start(daemon: &Daemon, uid: u32, cgroup: PathBuf, words: &[&str]) -> Piped {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((stdin, input), (output, stdout)) = (pipe(), pipe());
    let stderr = File::options().write(true).open("/dev/null").unwrap().into();
    let spec = RunSpec { uid, gid: uid, ..spec(&cgroup, words) };
    let running = daemon.block_on(daemon.launcher().launch(spec, [stdin, stdout, stderr])).unwrap();
    Piped { running, _input: input, output }
}

fn cgroup(daemon: &Daemon, name: &str) -> PathBuf {
    let cgroup = daemon.cgroup.join(name);
    std::fs::create_dir(&cgroup).unwrap();
    cgroup
}

/// What an intruder's run says.
fn tried(said: &str) -> BTreeMap<String, String> {
    said.lines().filter_map(|line| line.rsplit_once(' ')).map(|(what, how)| (what.into(), how.into())).collect()
}

/// A victim, and what a run of `uid` gets out of it.
fn intrusion(uid: u32) -> BTreeMap<String, String> {
    let daemon = Daemon::start();
    let name = format!("weir-apart-{}-{uid}", std::process::id());
    let victim = start(&daemon, UID, cgroup(&daemon, "victim"), &[PYTHON, "-c", VICTIM, &name]);
    let mut line = String::new();
    BufReader::new(File::from(victim.output)).read_line(&mut line).unwrap();
    let (pid, address) = line.trim().split_once(' ').unwrap();
    let words = [PYTHON, "-c", INTRUDER, pid, address, &name];
    let intruder = start(&daemon, uid, cgroup(&daemon, "intruder"), &words);
    let said = String::from_utf8(read_all(File::from(intruder.output))).unwrap();
    drop(victim.running);
    tried(&said)
}

#[test]
fn an_agent_of_another_user_is_out_of_reach() {
    let mut got = intrusion(UID + 1);
    assert_eq!(got.len(), ATTEMPTS.len(), "{got:?}");
    let abstract_socket = got.remove("abstract").unwrap();
    match apartness().unwrap() {
        Apartness::Domain => assert_eq!(abstract_socket, "EPERM"),
        Apartness::Users => assert_eq!(abstract_socket, "done", "`weir doctor` says that these are open"),
    }
    for (what, how) in got {
        assert!(matches!(how.as_str(), "EPERM" | "EACCES"), "{what}: {how}");
    }
}

#[test]
fn another_run_of_the_same_user_is_out_of_reach_where_the_kernel_has_scopes() {
    let got = intrusion(UID);
    assert_eq!(got.len(), ATTEMPTS.len(), "{got:?}");
    let open = |what: &&str| !matches!(got[*what].as_str(), "EPERM" | "EACCES");
    let open: Vec<&str> = ATTEMPTS.into_iter().filter(|what| open(what)).collect();
    match apartness().unwrap() {
        Apartness::Domain => assert_eq!(open, [""; 0], "{got:?}"),
        // Which is what `weir doctor` says of such a kernel.
        Apartness::Users => assert!(open.contains(&"signal") && open.contains(&"abstract"), "{got:?}"),
    }
}

#[test]
fn within_a_run_processes_signal_trace_and_read_each_other() {
    let daemon = Daemon::start();
    let name = format!("weir-within-{}", std::process::id());
    let script = format!(
        r#"
        mkfifo "$0/in" "$0/out"
        {PYTHON} -c "$1" {name} < "$0/in" > "$0/out" &
        exec 8> "$0/in" 9< "$0/out"
        read pid address <&9
        {PYTHON} -c "$2" $pid $address {name}
        kill $pid
        wait $pid
        echo "ended $?""#
    );
    let folder = daemon.folder.path().join("fifos");
    std::fs::create_dir(&folder).unwrap();
    rustix::fs::chown(&folder, Some(rustix::fs::Uid::from_raw(UID)), None).unwrap();
    let said = daemon.prints(&["sh", "-c", &script, folder.to_str().unwrap(), VICTIM, INTRUDER]);
    let mut got = tried(&said);
    assert_eq!(got.remove("ended").as_deref(), Some("143"));
    assert_eq!(got.len(), ATTEMPTS.len(), "{said}");
    assert_eq!([&got["vm"], &got["mem"]], ["the_secret"; 2]);
    // A process may trace what is not its child unless the host forbids that (Yama).
    let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    for (what, how) in got.iter().filter(|(what, _)| yama.trim().is_empty() || !["trace", "fd of"].contains(&&***what))
    {
        assert!(!how.starts_with('E'), "{what}: {how}");
    }
}

#[test]
fn an_abstract_socket_of_the_host_is_out_of_reach_where_the_kernel_has_scopes() {
    let name = format!("weir-host-{}", std::process::id());
    let _stream = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let datagram = format!("{name}-datagram");
    let _datagram = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&datagram).unwrap()).unwrap();
    let daemon = Daemon::start();
    let script = "import socket, sys\n\
                  for kind, name in ((socket.SOCK_STREAM, ''), (socket.SOCK_DGRAM, '-datagram')):\n\
                  \ttry: socket.socket(socket.AF_UNIX, kind).connect('\\0' + sys.argv[1] + name); print('connected')\n\
                  \texcept OSError as error: print(error.errno)\n";
    let said = daemon.prints(&[PYTHON, "-c", script, &name]);
    match apartness().unwrap() {
        Apartness::Domain => assert_eq!(said, format!("{}\n{}\n", libc::EPERM, libc::EPERM)),
        Apartness::Users => assert_eq!(said, "connected\nconnected\n"),
    }
}

#[test]
fn what_dies_leaves_no_core() {
    let daemon = Daemon::start();
    let cgroup = cgroup(&daemon, "core");
    // As agents do who would like one.
    let script =
        "ulimit -c unlimited 2>/dev/null; cat /proc/self/coredump_filter; grep core /proc/self/limits; kill -ABRT $$";
    let mut run = start(&daemon, UID, cgroup, &["sh", "-c", script]);
    let said = String::from_utf8(read_all(File::from(run.output))).unwrap();
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["00000000", "Max", "core", "file", "size", "1", "1", "bytes"]);
    assert_eq!(daemon.block_on(run.running.wait()), Exit::Signal(Signal::ABORT.as_raw()));
}
