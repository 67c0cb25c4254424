//! Messages on a Unix stream socket: four bytes of length (big endian), then JSON.
//!
//! Descriptors travel by `SCM_RIGHTS` (unix(7)) with the first byte of a message, and are received close-on-exec. The
//! kernel never merges bytes that carry descriptors with those of another message, so what comes while a length or its
//! body is read belongs to that message.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Serialize, de::DeserializeOwned};

/// The longest message, in bytes of JSON.
pub const FRAME_MAX: usize = 1 << 20;

/// The most descriptors that one message may carry.
pub const MAX_DESCRIPTORS: usize = 4;

const HEAD: usize = 4;

/// How much of an announced body is made room for before it has come.
const CHUNK: usize = 64 << 10;

/// Why a message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side announced, or this side made, more than [`FRAME_MAX`].
    #[error("a message of {len} bytes is longer than {FRAME_MAX}")]
    TooLong {
        /// Bytes of JSON.
        len: usize,
    },
    /// More than [`MAX_DESCRIPTORS`] came, or more than this process may open.
    #[error("a message came with more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    /// The stream ended inside a message.
    #[error("the connection ended inside a message")]
    CutOff,
    /// Not the JSON that was expected.
    #[error("a message is not understood: {source}")]
    Json {
        /// What serde says.
        source: serde_json::Error,
    },
    /// The socket failed.
    #[error("the control socket failed: {source}")]
    Io {
        /// The system's error.
        source: std::io::Error,
    },
}

impl From<Errno> for FrameError {
    fn from(errno: Errno) -> Self {
        Self::Io { source: errno.into() }
    }
}

/// What one read brought.
#[derive(Debug)]
pub(crate) enum Step {
    /// Not a whole message yet.
    More,
    /// A whole message.
    Message(Message),
    /// The other side closed between two messages.
    Closed,
}

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Message {
    body: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Message {
    /// Reads the JSON.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        serde_json::from_slice(&self.body).map_err(|source| FrameError::Json { source })
    }
}

/// The reading half's state; it outlives a read that is given up half-way, so nothing is lost then.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// The length field and then the body, as far as they have come.
    got: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Incoming {
    /// Reads once from `socket`. A socket that does not block gives `WOULDBLOCK` as [`FrameError::Io`].
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<Step, FrameError> {
        let have = self.got.len();
        let end = match self.announced()? {
            None => HEAD,
            Some(len) => (HEAD + len).min(have + CHUNK),
        };
        // Never past the end of this message: the next one's descriptors must come with the next.
        self.got.resize(end, 0);
        let read = self.read_into(socket, have);
        self.got.truncate(have + *read.as_ref().unwrap_or(&0));
        match read? {
            0 if have == 0 => Ok(Step::Closed),
            0 => Err(FrameError::CutOff),
            _ => self.finish(),
        }
    }

    /// Reads once, behind the first `have` bytes.
    fn read_into(&mut self, socket: BorrowedFd<'_>, have: usize) -> Result<usize, FrameError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let room = self.got.get_mut(have..).unwrap_or_default();
        let got = loop {
            let mut slices = [IoSliceMut::new(room)];
            match recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        // Truncation means that some were dropped: a message without its descriptors is another message.
        if got.flags.contains(ReturnFlags::CTRUNC) || self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(FrameError::TooManyDescriptors);
        }
        Ok(got.bytes)
    }

    /// The body's length, once the length field is there.
    fn announced(&self) -> Result<Option<usize>, FrameError> {
        let Some(head) = self.got.first_chunk::<HEAD>() else { return Ok(None) };
        let len = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        // Judged before the body is waited for: a length is only the peer's claim.
        if len > FRAME_MAX { Err(FrameError::TooLong { len }) } else { Ok(Some(len)) }
    }

    fn finish(&mut self) -> Result<Step, FrameError> {
        match self.announced()? {
            Some(len) if self.got.len() == HEAD + len => Ok(Step::Message(Message {
                body: std::mem::take(&mut self.got).split_off(HEAD),
                descriptors: std::mem::take(&mut self.descriptors),
            })),
            _ => Ok(Step::More),
        }
    }

    /// Reads from a socket that blocks until a message is whole; `None` when the other side closed.
    pub(crate) fn receive_blocking(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Message>, FrameError> {
        loop {
            match self.receive(socket)? {
                Step::More => {}
                Step::Message(message) => return Ok(Some(message)),
                Step::Closed => return Ok(None),
            }
        }
    }
}

/// A message on its way out.
#[derive(Debug)]
pub(crate) struct Outgoing<'fd> {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: &'fd [BorrowedFd<'fd>],
}

impl<'fd> Outgoing<'fd> {
    /// Lays out `message`, to be sent with `descriptors`.
    pub(crate) fn new<T: Serialize>(message: &T, descriptors: &'fd [BorrowedFd<'fd>]) -> Result<Self, FrameError> {
        let mut bytes = vec![0; HEAD];
        serde_json::to_writer(&mut bytes, message).map_err(|source| FrameError::Json { source })?;
        let len = bytes.len() - HEAD;
        let field = u32::try_from(len).map_err(|_| FrameError::TooLong { len })?;
        if len > FRAME_MAX {
            return Err(FrameError::TooLong { len });
        }
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(FrameError::TooManyDescriptors);
        }
        for (to, from) in bytes.iter_mut().zip(field.to_be_bytes()) {
            *to = from;
        }
        Ok(Self { bytes, sent: 0, descriptors })
    }

    /// Writes once; true when all of it is out.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>) -> Result<bool, FrameError> {
        let rest = self.bytes.get(self.sent..).unwrap_or_default();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if self.sent == 0 && !self.descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(self.descriptors));
        }
        match sendmsg(socket, &[IoSlice::new(rest)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(sent) => self.sent += sent,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(self.sent == self.bytes.len())
    }

    /// Writes all of it to a socket that blocks.
    pub(crate) fn send_blocking(mut self, socket: BorrowedFd<'_>) -> Result<(), FrameError> {
        while !self.send(socket)? {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::AsFd, os::unix::net::UnixStream};

    use super::*;

    fn receive(socket: &UnixStream) -> Result<Option<Message>, FrameError> {
        Incoming::default().receive_blocking(socket.as_fd())
    }

    #[test]
    fn a_message_and_its_descriptors_arrive_together_and_only_once() {
        let (a, b) = UnixStream::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let descriptors = [null.as_fd(); MAX_DESCRIPTORS];
        Outgoing::new(&"one", &descriptors).unwrap().send_blocking(a.as_fd()).unwrap();
        Outgoing::new(&"two", &[]).unwrap().send_blocking(a.as_fd()).unwrap();
        let mut incoming = Incoming::default();
        let one = incoming.receive_blocking(b.as_fd()).unwrap().unwrap();
        assert_eq!((one.parse::<String>().unwrap().as_str(), one.descriptors.len()), ("one", 4));
        for descriptor in &one.descriptors {
            let flags = rustix::io::fcntl_getfd(descriptor).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        let two = incoming.receive_blocking(b.as_fd()).unwrap().unwrap();
        assert_eq!((two.parse::<String>().unwrap().as_str(), two.descriptors.len()), ("two", 0));
        drop(a);
        assert!(incoming.receive_blocking(b.as_fd()).unwrap().is_none());
    }

    #[test]
    fn bytes_that_come_one_by_one_make_the_same_message() {
        let (a, b) = UnixStream::pair().unwrap();
        b.set_nonblocking(true).unwrap();
        let whole = Outgoing::new(&vec![7; 40], &[]).unwrap().bytes;
        let mut incoming = Incoming::default();
        for (nth, byte) in whole.iter().enumerate() {
            (&a).write_all(&[*byte]).unwrap();
            match incoming.receive(b.as_fd()).unwrap() {
                Step::More => assert!(nth + 1 < whole.len()),
                Step::Message(message) => {
                    assert_eq!(nth + 1, whole.len());
                    assert_eq!(message.parse::<Vec<i32>>().unwrap(), vec![7; 40]);
                }
                Step::Closed => panic!("closed"),
            }
        }
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_its_body() {
        let (a, b) = UnixStream::pair().unwrap();
        (&a).write_all(&(1_u32 << 20).wrapping_add(1).to_be_bytes()).unwrap();
        assert!(matches!(receive(&b), Err(FrameError::TooLong { len: 1_048_577 })));
        let long = "x".repeat(FRAME_MAX);
        assert!(matches!(Outgoing::new(&long, &[]), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn an_end_inside_a_message_is_an_error() {
        for cut in [&[0_u8, 0][..], &[0, 0, 0, 2, b'1']] {
            let (a, b) = UnixStream::pair().unwrap();
            (&a).write_all(cut).unwrap();
            drop(a);
            assert!(matches!(receive(&b), Err(FrameError::CutOff)));
        }
    }

    #[test]
    fn five_descriptors_are_refused_on_both_sides() {
        let (a, b) = UnixStream::pair().unwrap();
        let five = [b.as_fd(); 5];
        assert!(matches!(Outgoing::new(&1, &five), Err(FrameError::TooManyDescriptors)));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&five)));
        let bytes = [IoSlice::new(&[0, 0, 0, 1, b'1'])];
        sendmsg(&a, &bytes, &mut ancillary, SendFlags::empty()).unwrap();
        assert!(matches!(receive(&b), Err(FrameError::TooManyDescriptors)));
    }
}
