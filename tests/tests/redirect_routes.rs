//! Packets that name hops of their own do not leave an agent, on the real kernel.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use end_to_end::kernel_support::Field;
use gateway_daemon::redirect::{Egress, Operation, Reason};

const PATIENCE: Duration = Duration::from_secs(10);

/// Sends a datagram by way of another host, by an option of its own.
const BY_WAY: &str = r#"
import socket, sys
address, hop = sys.argv[1:]
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
IP_RETOPTS = 7
route = bytes([131, 7, 4]) + socket.inet_aton(hop) + bytes([0])
try:
    made.sendmsg([b'x'], [(socket.IPPROTO_IP, IP_RETOPTS, route)], 0, (address, 9))
except OSError as error:
    print(type(error).__name__)
else:
    print('sent')
"#;

/// Python from within a cgroup.
fn python(cgroup: &Path, script: &str, words: &[&str]) -> Command {
    let enter = format!("echo 0 > {}/cgroup.procs && exec \"$@\"", cgroup.display());
    let mut command = Command::new("sh");
    command.args(["-c", &enter, "sh", "/usr/bin/python3", "-c", script]).args(words).stdin(Stdio::null());
    command
}

#[tokio::test]
async fn a_packet_that_names_its_own_hops_does_not_leave_an_agent() -> Result<()> {
    let field = Field::new()?;
    let kernel = field.start()?;
    let mut events = kernel.events()?;
    let (agent, id) = field.cgroup("agent")?;
    kernel.enrol(id, Egress::OPEN)?;
    let (outside, _) = field.cgroup("outside")?;
    let send = |cgroup: &Path| -> Result<String> {
        let output = python(cgroup, BY_WAY, &["127.0.0.9", "127.0.0.10"]).output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    assert_eq!(send(&outside)?, "sent");
    assert_eq!(send(&agent)?, "PermissionError");
    let event = tokio::time::timeout(PATIENCE, events.next()).await??;
    assert_eq!(
        (event.operation, event.reason, event.cgroup, event.destination.ip().to_string().as_str()),
        (Operation::Packet, Reason::SourceRoute, Some(id), "127.0.0.10")
    );
    Ok(())
}

/// Makes a TCP socket whose packets go by way of another host, connects it from within a cgroup when it is told to, and
/// counts the packets that left: the first one, and those that the kernel sends again.
const LED: &str = r#"
import select, socket, sys, time
inside, address, hop = sys.argv[1:]
def tell(act):
    try:
        act()
    except OSError as error:
        print(type(error).__name__, flush=True)
    else:
        print('done', flush=True)
watch = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
watch.bind(('lo', 0x0800))
made = socket.socket()
route = bytes([131, 7, 4]) + socket.inet_aton(hop) + bytes([0])
tell(lambda: made.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route))
sys.stdin.readline()
open(inside + '/cgroup.procs', 'w').write('0')
made.setblocking(False)
tell(lambda: made.connect((address, 9)))
left, end = 0, time.monotonic() + 3.5
while select.select([watch], [], [], max(0, end - time.monotonic()))[0]:
    packet = watch.recv(100)
    left += packet[0] & 15 > 5 and packet[9] == socket.IPPROTO_TCP and packet[16:20] == socket.inet_aton(hop)
print('some left' if left else 'none left')
"#;

#[test]
fn a_connection_that_names_its_own_hops_does_not_leave_an_agent_by_retransmission_either() -> Result<()> {
    let field = Field::new()?;
    let (agent, id) = field.cgroup("agent")?;
    let (outside, _) = field.cgroup("outside")?;
    // Addresses of this test's own: it sees the packets of all.
    let address = |last: u8| field.v4(last).ip().to_string();
    let start = |from: &Path, to: &Path, hop: u8| -> Result<(Child, BufReader<ChildStdout>)> {
        let to = to.to_str().context("a path that is not UTF-8")?;
        let mut command = python(from, LED, &[to, &address(9), &address(hop)]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        Ok((child, output))
    };
    let line = |output: &mut BufReader<ChildStdout>| -> Result<String> {
        let mut line = String::new();
        output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    };
    // Before there were programs to see the option: nobody knows of it at the connect.
    let mut unseen = start(&outside, &agent, 10)?;
    let mut others = start(&outside, &outside, 11)?;
    assert_eq!((line(&mut unseen.1)?, line(&mut others.1)?), ("done".to_owned(), "done".to_owned()));
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    // Seen, and then handed to the agent.
    let mut seen = start(&outside, &agent, 12)?;
    // And the agent's own.
    let mut own = start(&agent, &agent, 13)?;
    assert_eq!((line(&mut seen.1)?, line(&mut own.1)?), ("done".to_owned(), "PermissionError".to_owned()));
    for (child, _) in [&mut unseen, &mut others, &mut seen, &mut own] {
        child.stdin.take().context("no input")?.write_all(b"\n")?;
    }
    for ((mut child, mut output), connected, left) in [
        (unseen, "BlockingIOError", "none left"),
        (others, "BlockingIOError", "some left"),
        (seen, "PermissionError", "none left"),
        (own, "BlockingIOError", "none left"),
    ] {
        assert_eq!((line(&mut output)?.as_str(), line(&mut output)?.as_str()), (connected, left));
        child.wait()?;
    }
    Ok(())
}

/// Sets options: by which packets name their own hops, by which they do not any more, and one with a long value.
const OPTIONS: &str = r#"
import socket
def tell(family, level, option, value):
    made = socket.socket(family)
    try:
        made.setsockopt(level, option, value)
    except OSError as error:
        print(type(error).__name__, end=' ')
    else:
        print('done', end=' ')
    return made
IPV6_2292PKTOPTIONS = 6
route = bytes([131, 7, 4, 127, 0, 0, 10, 0])
header = bytes([0, 2, 2, 1, 0, 0, 0, 0]) + bytes(15) + bytes([1])
tell(socket.AF_INET, socket.IPPROTO_IP, socket.IP_OPTIONS, route)
tell(socket.AF_INET6, socket.IPPROTO_IPV6, socket.IPV6_RTHDR, header)
tell(socket.AF_INET6, socket.IPPROTO_IPV6, IPV6_2292PKTOPTIONS, bytes([16]) + bytes(7) + bytes([41, 0, 0, 0, 8, 0, 0, 0]))
tell(socket.AF_INET, socket.IPPROTO_IP, socket.IP_OPTIONS, b'')
long = tell(socket.AF_INET, socket.SOL_SOCKET, socket.SO_RCVBUF, (8192).to_bytes(4, 'little') + bytes(100_000))
print(long.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
"#;

#[tokio::test]
async fn an_agent_sets_no_option_by_which_packets_name_their_own_hops_and_all_others() -> Result<()> {
    let field = Field::new()?;
    let set = |cgroup: &Path| -> Result<Vec<String>> {
        let output = python(cgroup, OPTIONS, &[]).output()?;
        Ok(String::from_utf8(output.stdout)?.split_whitespace().map(str::to_owned).collect())
    };
    let (outside, _) = field.cgroup("outside")?;
    let without_weir = set(&outside)?;
    assert_eq!((without_weir[0].as_str(), without_weir[3..].join(" ").as_str()), ("done", "done done 16384"));
    let kernel = field.start()?;
    let mut events = kernel.events()?;
    let (agent, id) = field.cgroup("agent")?;
    kernel.enrol(id, Egress::OPEN)?;
    assert_eq!(set(&outside)?, without_weir);
    assert_eq!(set(&agent)?.join(" "), "PermissionError PermissionError PermissionError done done 16384");
    let event = tokio::time::timeout(PATIENCE, events.next()).await??;
    assert_eq!(
        (event.operation, event.reason, event.cgroup, event.socket.0),
        (Operation::Option, Reason::SourceRoute, Some(id), 2)
    );
    Ok(())
}
