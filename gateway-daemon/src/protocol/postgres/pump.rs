//! Moves bytes between the agent, the machine and the server. One task a session, polled by hand, so that a statement
//! costs no hand-over between tasks and an idle session holds no buffer.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::{
    gate::Gate,
    machine::{Fault, Judge, Machine, Stop, Taken},
};
use crate::record::StoreError;

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// Reads and writes in a row before other sessions get their turn: so many, and no more after so long.
const TURNS: usize = 32;
const SLICE: Duration = Duration::from_micros(300);
/// How long a closing session may take to say why.
const FAREWELL: Duration = Duration::from_secs(5);
/// A read goes on the record with its answer; one that is not answered for so long, before it.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

thread_local! {
    /// What is read stays here only while it is looked at, so that idle sessions hold no read buffer.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// How a session ended.
#[derive(Debug)]
pub enum Ending {
    /// The agent said goodbye or closed its side.
    Agent,
    /// The server closed its side.
    Server,
    /// No byte came for too long.
    Idle,
    /// It was told to end.
    Told(super::answer::ErrorAnswer),
    /// It could not go on.
    Fault(Fault),
    /// The agent's connection broke.
    AgentBroke(io::Error),
    /// The server's connection broke.
    ServerBroke(io::Error),
}

/// What a session waits for beside its bytes.
pub trait World {
    /// Ready when the session must end.
    fn poll_told(&mut self, cx: &mut Context<'_>) -> Poll<super::answer::ErrorAnswer>;

    /// Fetches what the judge asked for; ready when it may be asked again.
    fn poll_fetched(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Asks the server to stop what it runs; ready when that is done, with whether it was.
    fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> Poll<bool>;
}

/// One side's bytes that were read and not used up.
#[derive(Debug)]
struct Side<S> {
    stream: S,
    left: BytesMut,
    /// Why the machine stopped at `left`.
    stop: Stop,
    ended: bool,
    needs_flush: bool,
}

impl<S> Side<S> {
    fn new(stream: S, left: BytesMut) -> Self {
        // Nothing left over, no buffer.
        let left = if left.is_empty() { BytesMut::new() } else { left };
        // What is left over from the start has not been looked at.
        Self { stream, left, stop: Stop::Busy, ended: false, needs_flush: false }
    }
}

/// A session that runs.
#[derive(Debug)]
pub struct Pump<A, S, J, W> {
    agent: Side<A>,
    server: Side<S>,
    /// The session.
    pub machine: Machine<J>,
    /// What it waits for beside its bytes.
    pub world: W,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
    last_byte: Instant,
    /// Runs while the agent waits for its turn.
    held: Option<Pin<Box<Sleep>>>,
    /// The server is asked to stop what it runs: until that is done nothing else is said to it.
    cancelling: bool,
    /// Runs while something waits to be shown; made when the first does.
    shown: Option<Pin<Box<Sleep>>>,
}

impl<A, S, J, W> Pump<A, S, J, W>
where
    A: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
    J: Judge,
    W: World,
{
    /// Over two streams, with what was read from each already.
    pub fn new(
        agent: (A, BytesMut),
        server: (S, BytesMut),
        machine: Machine<J>,
        world: W,
        idle: Option<Duration>,
    ) -> Self {
        Self {
            agent: Side::new(agent.0, agent.1),
            server: Side::new(server.0, server.1),
            machine,
            world,
            idle: idle.map(|limit| (limit, Box::pin(tokio::time::sleep(limit)))),
            last_byte: Instant::now(),
            held: None,
            cancelling: false,
            shown: None,
        }
    }

    /// Runs until the session ends.
    pub async fn run(&mut self) -> Ending {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Sends what may still be sent to the agent, and closes both sides.
    pub async fn farewell(&mut self) {
        let told = poll_fn(|cx| self.poll_farewell(cx));
        // An agent that does not read is not waited for.
        let _ = tokio::time::timeout(FAREWELL, told).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        let mut begun = None;
        for turn in 0..TURNS {
            match self.turn(cx) {
                // Most ends after one turn that moved something, and looks at no clock.
                Ok(true) if turn > 0 && begun.get_or_insert_with(Instant::now).elapsed() >= SLICE => break,
                Ok(true) => {}
                Ok(false) => return self.poll_waits(cx),
                Err(ending) => return Poll::Ready(ending),
            }
        }
        // Much to do: others first, then on from here.
        cx.waker().wake_by_ref();
        self.poll_waits(cx)
    }

    /// One round over both sides; whether anything moved.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Ending> {
        let mut moved = self.write_sides(cx)?;
        if self.server.ended && self.machine.to_agent().held() == 0 {
            return Err(Ending::Server);
        }
        // Answers first: they make room for more requests.
        if !self.server.ended && self.machine.wants_server() && !self.machine.log().is_ahead() {
            moved |= self.read_server(cx)?;
        }
        moved |= self.cancel(cx)?;
        moved |= self.read_agent(cx)?;
        self.machine.settle();
        moved |= self.release(cx)?;
        moved |= self.write_sides(cx)?;
        if self.agent.stop == Stop::Closed && self.machine.to_server().held() == 0 {
            return Err(Ending::Agent);
        }
        Ok(moved)
    }

    fn release(&mut self, cx: &mut Context<'_>) -> Result<bool, Ending> {
        let failed = |error: StoreError| Ending::Fault(Fault::Record(error));
        let mut moved = false;
        if let Some(event) = self.machine.waits_for()
            && let Poll::Ready(receipt) = self.machine.log().poll_receipt(cx, event)
        {
            let receipt = receipt.map_err(failed)?;
            self.machine.release(&receipt);
            moved = true;
        }
        if self.machine.log().is_ahead()
            && let allowance = self.machine.log().allowance()
            && let Poll::Ready(below) = self.machine.log().poll_below(cx, allowance)
        {
            below.map_err(failed)?;
            moved = true;
        }
        Ok(moved)
    }

    fn write_sides(&mut self, cx: &mut Context<'_>) -> Result<bool, Ending> {
        let to_agent = write(&mut self.agent, self.machine.to_agent(), cx).map_err(Ending::AgentBroke)?;
        let to_server = write(&mut self.server, self.machine.to_server(), cx).map_err(Ending::ServerBroke)?;
        Ok(to_agent | to_server)
    }

    fn read_server(&mut self, cx: &mut Context<'_>) -> Result<bool, Ending> {
        let machine = &mut self.machine;
        let read = read(&mut self.server, cx, |bytes| machine.from_server(bytes));
        match read.map_err(|error| error.ending(Ending::ServerBroke))? {
            Read::Nothing => Ok(false),
            Read::Some => {
                self.last_byte = Instant::now();
                // What the agent sent meanwhile may go on.
                if self.agent.stop == Stop::Busy {
                    self.agent_left()?;
                }
                Ok(true)
            }
            Read::End => {
                self.server.ended = true;
                Ok(true)
            }
        }
    }

    /// Has the server stop a statement whose answer is cut off.
    fn cancel(&mut self, cx: &mut Context<'_>) -> Result<bool, Ending> {
        self.cancelling |= self.machine.take_cancel();
        if !self.cancelling {
            return Ok(false);
        }
        let Poll::Ready(done) = self.world.poll_cancelled(cx) else { return Ok(false) };
        self.cancelling = false;
        if !done {
            self.machine.cancel_failed().map_err(Ending::Fault)?;
        }
        Ok(true)
    }

    fn read_agent(&mut self, cx: &mut Context<'_>) -> Result<bool, Ending> {
        // A cancel on its way must not meet the next statement.
        if self.cancelling {
            return Ok(false);
        }
        if let Stop::Until(turn) = self.agent.stop {
            let held = self.held.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(turn.into())));
            if held.as_mut().poll(cx).is_pending() {
                return Ok(false);
            }
            self.held = None;
            self.agent_left()?;
            return Ok(true);
        }
        if self.agent.stop == Stop::Catalog {
            if self.world.poll_fetched(cx).is_pending() {
                return Ok(false);
            }
            self.agent_left()?;
            return Ok(true);
        }
        if self.agent.stop == Stop::Busy && !self.agent.left.is_empty() {
            let before = self.agent.left.len();
            self.agent_left()?;
            if self.agent.stop == Stop::Busy {
                return Ok(self.agent.left.len() != before);
            }
        }
        if self.agent.ended || !self.machine.wants_agent() {
            return Ok(false);
        }
        let machine = &mut self.machine;
        let read = read(&mut self.agent, cx, |bytes| machine.from_agent(bytes));
        match read.map_err(|error| error.ending(Ending::AgentBroke))? {
            Read::Nothing => Ok(false),
            Read::Some => {
                self.last_byte = Instant::now();
                Ok(true)
            }
            // As a server does: what runs ends first, and its answer is still delivered.
            Read::End => {
                self.agent.ended = true;
                // In the middle of COPY data a goodbye would be read as data: the server's connection is cut instead.
                if self.machine.is_idle() || self.machine.is_in_copy() {
                    return Err(Ending::Agent);
                }
                self.machine.say_goodbye();
                Ok(true)
            }
        }
    }

    fn agent_left(&mut self) -> Result<(), Ending> {
        let machine = &mut self.machine;
        use_up(&mut self.agent, |bytes| machine.from_agent(bytes)).map_err(Ending::Fault)
    }

    fn poll_waits(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        if let Poll::Ready(answer) = self.world.poll_told(cx) {
            return Poll::Ready(Ending::Told(answer));
        }
        self.show_what_waits(cx);
        let Some((limit, sleep)) = &mut self.idle else { return Poll::Pending };
        while sleep.as_mut().poll(cx).is_ready() {
            let end = self.last_byte + *limit;
            if end <= Instant::now() {
                return Poll::Ready(Ending::Idle);
            }
            // Bytes moved the end on; the timer was not touched for each of them.
            sleep.as_mut().reset(end);
        }
        Poll::Pending
    }

    /// Puts a request on the record whose answer is long in coming, so that people see what runs. The timer is set once and
    /// left to run out, not touched for each statement.
    fn show_what_waits(&mut self, cx: &mut Context<'_>) {
        if self.shown.is_none() && self.machine.log().keeps_back() {
            self.shown = Some(Box::pin(tokio::time::sleep(SHOWN_AFTER)));
        }
        if self.shown.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready()) {
            self.shown = None;
            self.machine.log().commit();
        }
    }

    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.machine.settle();
        loop {
            let released = self.release(cx).unwrap_or_else(|_| {
                // The record failed: what waits for it never leaves, but what is open does.
                self.machine.abandon();
                false
            });
            match write(&mut self.agent, self.machine.to_agent(), cx).map(|wrote| released | wrote) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => return Poll::Ready(()),
            }
        }
        if self.machine.to_agent().held() > 0 {
            return Poll::Pending;
        }
        let agent = ready!(Pin::new(&mut self.agent.stream).poll_shutdown(cx));
        let server = ready!(Pin::new(&mut self.server.stream).poll_shutdown(cx));
        // Either may be gone already.
        drop((agent, server));
        Poll::Ready(())
    }
}

/// What a read brought.
enum Read {
    Nothing,
    Some,
    End,
}

/// Why a read failed.
enum ReadError {
    Io(io::Error),
    Fault(Fault),
}

impl ReadError {
    fn ending(self, broke: impl FnOnce(io::Error) -> Ending) -> Ending {
        match self {
            Self::Io(error) => broke(error),
            Self::Fault(fault) => Ending::Fault(fault),
        }
    }
}

/// Reads once, gives the bytes to `take` and keeps what it does not use.
fn read<S: AsyncRead + Unpin>(
    side: &mut Side<S>,
    cx: &mut Context<'_>,
    mut take: impl FnMut(&[u8]) -> Result<Taken, Fault>,
) -> Result<Read, ReadError> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        match Pin::new(&mut side.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => return Ok(Read::Nothing),
            Poll::Ready(Err(error)) => return Err(ReadError::Io(error)),
            Poll::Ready(Ok(())) => {}
        }
        let bytes = buffer.filled();
        if bytes.is_empty() {
            return Ok(Read::End);
        }
        if side.left.is_empty() {
            let taken = take(bytes).map_err(ReadError::Fault)?;
            side.stop = taken.stop;
            side.left.extend_from_slice(bytes.get(taken.bytes..).unwrap_or_default());
        } else {
            side.left.extend_from_slice(bytes);
            use_up(side, take).map_err(ReadError::Fault)?;
        }
        Ok(Read::Some)
    })
}

/// Gives what was kept to `take`.
fn use_up<S>(side: &mut Side<S>, mut take: impl FnMut(&[u8]) -> Result<Taken, Fault>) -> Result<(), Fault> {
    let taken = take(&side.left)?;
    side.left.advance(taken.bytes);
    side.stop = taken.stop;
    if side.left.is_empty() {
        side.left = BytesMut::new();
    }
    Ok(())
}

/// Writes what may leave; whether anything did.
fn write<S: AsyncWrite + Unpin>(side: &mut Side<S>, gate: &mut Gate, cx: &mut Context<'_>) -> io::Result<bool> {
    let mut wrote = false;
    while !gate.ready().is_empty() {
        match Pin::new(&mut side.stream).poll_write(cx, gate.ready()) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(written)) => {
                gate.advance(written);
                wrote = true;
                side.needs_flush = true;
            }
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => break,
        }
    }
    // TLS may hold what was written.
    if side.needs_flush && Pin::new(&mut side.stream).poll_flush(cx)?.is_ready() {
        side.needs_flush = false;
    }
    Ok(wrote)
}
