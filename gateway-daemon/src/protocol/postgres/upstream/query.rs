//! Statements of Weir's own, on a connection of its own: look-ups in the catalogue.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use super::{
    Upstream,
    connect::{Clock, broken},
    error::{Failure, Phase},
    frame::{Fields, Frame, put_message, take_frame},
};

/// What an answer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLimits {
    /// Rows.
    pub rows: usize,
    /// Bytes of all messages together; also the longest message.
    pub bytes: usize,
    /// Time until ReadyForQuery.
    pub deadline: Duration,
}

/// Sends `sql` as a simple query and collects its rows as text, those of several statements one after the other.
///
/// After any failure but [`Failure::Server`] the connection stands in the middle of an answer: drop it.
///
/// # Errors
/// The server's refusal, a limit, or a broken connection.
pub async fn simple_query_rows(
    upstream: &mut Upstream,
    sql: &str,
    limits: &RowLimits,
) -> Result<Vec<Vec<Option<String>>>, Failure> {
    let phase = Phase::Query;
    let clock = Clock::start(limits.deadline);
    clock.write(phase, &mut upstream.stream, &query_message(sql)?).await?;
    let mut answer = Answer::new(*limits);
    loop {
        if answer.receive(&mut upstream.leftover)? {
            return answer.finish();
        }
        upstream.leftover.reserve(READ);
        let read = upstream.stream.read_buf(&mut upstream.leftover);
        if clock.run(phase, broken(phase, read)).await? == 0 {
            return Err(Failure::Closed { phase });
        }
    }
}

/// How much is read at once.
const READ: usize = 16 * 1024;

fn query_message(sql: &str) -> Result<Vec<u8>, Failure> {
    if sql.contains('\0') {
        return Err(Failure::Parameter { name: "query".to_owned(), fault: "holds a NUL byte" });
    }
    let mut body = sql.as_bytes().to_vec();
    body.push(0);
    let mut out = Vec::with_capacity(body.len().saturating_add(5));
    put_message(&mut out, b'Q', &body)?;
    Ok(out)
}

/// The answer to a simple query, without I/O.
pub(super) struct Answer {
    limits: RowLimits,
    bytes: usize,
    rows: Vec<Vec<Option<String>>>,
    refused: Option<Failure>,
}

impl Answer {
    pub(super) const fn new(limits: RowLimits) -> Self {
        Self { limits, bytes: 0, rows: Vec::new(), refused: None }
    }

    /// Takes whole messages off `buf`; true when ReadyForQuery was among them.
    pub(super) fn receive(&mut self, buf: &mut BytesMut) -> Result<bool, Failure> {
        while let Some(frame) = take_frame(buf, self.limits.bytes)? {
            self.bytes = self.bytes.saturating_add(frame.raw.len());
            if self.bytes > self.limits.bytes {
                return Err(Failure::AnswerLimit { limit: self.limits.bytes, unit: "bytes" });
            }
            match frame.tag {
                b'D' => {
                    if self.rows.len() >= self.limits.rows {
                        return Err(Failure::AnswerLimit { limit: self.limits.rows, unit: "rows" });
                    }
                    self.rows.push(row(&frame)?);
                }
                b'E' => self.refused = Some(Failure::from_response(&frame)),
                b'Z' => return Ok(true),
                // RowDescription, CommandComplete, EmptyQueryResponse, notices, notifications, parameters.
                b'T' | b'C' | b'I' | b'N' | b'A' | b'S' => {}
                tag => {
                    return Err(Failure::Unexpected { tag: char::from(tag), phase: Phase::Query });
                }
            }
        }
        Ok(false)
    }

    pub(super) fn finish(self) -> Result<Vec<Vec<Option<String>>>, Failure> {
        match self.refused {
            None => Ok(self.rows),
            Some(refused) => Err(refused),
        }
    }
}

fn row(frame: &Frame) -> Result<Vec<Option<String>>, Failure> {
    let mut fields = Fields::of(frame);
    let count = fields.u16()?;
    let mut row = Vec::new();
    for _ in 0..count {
        row.push(match usize::try_from(fields.i32()?) {
            Err(_) => None, // -1 is null
            Ok(length) => {
                let value = fields.slice(length)?;
                Some(std::str::from_utf8(value).map_err(|_| Failure::AnswerText)?.to_owned())
            }
        });
    }
    fields.end()?;
    Ok(row)
}
