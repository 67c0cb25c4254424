//! What must hold for any bytes, a function for each parser that hostile bytes reach. The fuzz targets call them with
//! what a fuzzer finds, the library's own tests with the seeds beside the targets and with chance.

mod machine;
mod messages;
mod server;
mod statement;
#[cfg(test)]
mod tests;
mod token;

pub use machine::machine;
pub use messages::{backend, frontend, startup};
pub use statement::sql;
pub use token::{keys, token};

pub use crate::protocol::postgres::upstream::fuzzing::{answer as upstream_answer, startup as upstream_startup};
pub use crate::record::fuzzing::record;

/// Choices made by the fuzzer's bytes, from the front; behind their end every choice is the first.
struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    const fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn byte(&mut self) -> u8 {
        self.rest.split_off_first().copied().unwrap_or_default()
    }

    /// Up to 255 bytes.
    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.rest.len());
        self.rest.split_off(..length).unwrap_or_default()
    }

    /// One choice in `n`.
    fn one_in(&mut self, n: u8) -> bool {
        self.byte() % n == n - 1
    }

    fn pick<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        let at = usize::from(self.byte()) % texts.len().max(1);
        texts.get(at).copied().unwrap_or_default()
    }
}

/// A message as either side sends it.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    // The fuzzer's bodies are far below 4 GiB.
    message.extend(u32::try_from(body.len() + 4).unwrap_or(u32::MAX).to_be_bytes());
    message.extend(body);
    message
}

/// Takes the first whole message off `bytes`.
fn take_message(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (&[tag, length @ ..], _) = bytes.split_first_chunk::<5>()?;
    let whole = usize::try_from(u32::from_be_bytes(length)).ok()?.checked_add(1)?;
    if whole > bytes.len() {
        return None;
    }
    let frame: Vec<u8> = bytes.drain(..whole).collect();
    Some((tag, frame))
}
