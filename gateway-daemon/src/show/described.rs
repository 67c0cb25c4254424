//! What earlier messages of a session said of results to come.
//!
//! A driver describes a prepared statement once and runs it a thousand times: the answers of those have rows without
//! names. The record says which request each one runs ([`Runs`]), so names and types are remembered by request.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::postgres::Messages;
use crate::record::{Request, RequestKind, Runs};

/// Requests, and columns of theirs, that are remembered; what was not used for longest goes first.
const REQUESTS: usize = 10_000;
const COLUMNS: usize = 200_000;
/// From an Execute over the portal's first one to the prepared statement.
const STEPS: usize = 3;

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    /// Safe to show.
    pub(super) name: String,
    /// The type's OID.
    pub(super) kind: u32,
    pub(super) binary: bool,
}

/// What is remembered of a session.
#[derive(Debug, Default)]
pub(super) struct Described {
    requests: HashMap<u64, Known>,
    /// Requests by their last use.
    used: BTreeMap<u64, u64>,
    clock: u64,
    /// Of all requests together.
    columns: usize,
}

#[derive(Debug)]
struct Known {
    used: u64,
    runs: Option<Runs>,
    columns: Option<Arc<[Column]>>,
    parameters: Option<Arc<[u32]>>,
}

impl Described {
    /// Takes a request. What a Query is told is of its own statements, and of no later one.
    pub(super) fn asked(&mut self, request: &Request) {
        match request.kind {
            RequestKind::Simple => return,
            RequestKind::Prepare | RequestKind::Execute => {}
        }
        if let Some(runs) = &request.runs {
            self.touch(runs.request);
        }
        self.forget(request.request);
        self.clock = self.clock.saturating_add(1);
        let known = Known { used: self.clock, runs: request.runs.clone(), columns: None, parameters: None };
        self.requests.insert(request.request, known);
        self.used.insert(self.clock, request.request);
        self.shrink();
    }

    /// Takes what the messages of a request described.
    pub(super) fn learn(&mut self, request: u64, messages: &Messages) {
        let Some(known) = self.requests.get_mut(&request) else { return };
        if let Some(parameters) = messages.parameters() {
            known.parameters = Some(parameters.clone());
        }
        let Some(columns) = messages.described() else { return };
        let before = known.columns.replace(columns.clone()).map_or(0, |columns| columns.len());
        self.columns = self.columns.saturating_sub(before).saturating_add(columns.len());
        self.shrink();
    }

    /// The columns of a request's rows, as far as they were described.
    pub(super) fn columns(&self, request: u64) -> Option<Arc<[Column]>> {
        let mut results = None;
        let mut known = self.requests.get(&request)?;
        for _ in 0..STEPS {
            match (&known.columns, &known.runs) {
                (Some(columns), _) => return Some(in_formats(columns, results)),
                (None, Some(runs)) => {
                    results = results.or(runs.results.as_deref());
                    known = self.requests.get(&runs.request)?;
                }
                (None, None) => return None,
            }
        }
        None
    }

    /// The types of a request's parameters, as far as they were described.
    pub(super) fn parameters(&self, request: u64) -> Arc<[u32]> {
        let of = self.requests.get(&request).and_then(|known| known.runs.as_ref());
        let prepared = of.and_then(|runs| self.requests.get(&runs.request));
        prepared.and_then(|known| known.parameters.clone()).unwrap_or_default()
    }

    fn touch(&mut self, request: u64) {
        let Some(known) = self.requests.get_mut(&request) else { return };
        self.used.remove(&known.used);
        self.clock = self.clock.saturating_add(1);
        known.used = self.clock;
        self.used.insert(self.clock, request);
    }

    fn forget(&mut self, request: u64) {
        let Some(known) = self.requests.remove(&request) else { return };
        self.used.remove(&known.used);
        self.columns = self.columns.saturating_sub(known.columns.map_or(0, |columns| columns.len()));
    }

    fn shrink(&mut self) {
        while self.requests.len() > REQUESTS || self.columns > COLUMNS {
            let Some((_, oldest)) = self.used.first_key_value() else { return };
            self.forget(*oldest);
        }
    }
}

/// A statement's description knows no formats yet: Bind gives them. A portal's has its own.
fn in_formats(columns: &Arc<[Column]>, results: Option<&[u16]>) -> Arc<[Column]> {
    let Some(results) = results else { return columns.clone() };
    let format = |at: usize| match results {
        [] => 0,
        [all] => *all,
        each => each.get(at).copied().unwrap_or(0),
    };
    columns.iter().enumerate().map(|(at, column)| Column { binary: format(at) == 1, ..column.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::{DecisionRecord, SessionId},
        show::RowLimit,
    };

    fn request(request: u64, kind: RequestKind, runs: Option<Runs>) -> Request {
        Request {
            session: SessionId(1),
            request,
            kind,
            sql: String::new(),
            parameters: Vec::new(),
            formats: Vec::new(),
            types: Vec::new(),
            accesses: Vec::new(),
            decision: DecisionRecord {
                allowed: true,
                policies: Vec::new(),
                set: [0; 32],
                reason: String::new(),
                denied: None,
            },
            runs,
        }
    }

    /// Messages that describe one column of this name, `int4` in text.
    fn describing(name: &str) -> Messages {
        let mut body = b"\0\x01".to_vec();
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(b"\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0");
        let mut message = b"t\0\0\0\x0a\0\x01\0\0\0\x17T".to_vec();
        message.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        message.extend_from_slice(&body);
        let mut messages = Messages::new(RowLimit::All, 0);
        messages.feed(&message, &mut String::new());
        messages
    }

    fn runs(request: u64, results: Option<&[u16]>) -> Option<Runs> {
        Some(Runs { request, results: results.map(<[u16]>::to_vec) })
    }

    fn heads(described: &Described, request: u64) -> Option<Vec<(String, bool)>> {
        Some(described.columns(request)?.iter().map(|column| (column.name.clone(), column.binary)).collect())
    }

    #[test]
    fn a_prepared_statement_names_the_columns_of_all_that_run_it_in_the_formats_of_each() {
        let mut described = Described::default();
        described.asked(&request(1, RequestKind::Prepare, None));
        described.learn(1, &describing("id"));
        described.asked(&request(2, RequestKind::Execute, runs(1, Some(&[1]))));
        described.asked(&request(3, RequestKind::Execute, runs(2, None)));
        described.asked(&request(4, RequestKind::Execute, runs(1, Some(&[]))));
        let of = |name: &str, binary| Some(vec![(name.to_owned(), binary)]);
        assert_eq!(heads(&described, 2), of("id", true));
        assert_eq!(heads(&described, 3), of("id", true), "a portal that goes on has the formats of its Bind");
        assert_eq!(heads(&described, 4), of("id", false));
        assert_eq!(*described.parameters(4), [23]);
        // The portal's own description is newer.
        described.learn(4, &describing("renamed"));
        assert_eq!(heads(&described, 4), of("renamed", false));
    }

    #[test]
    fn what_is_not_known_stays_unknown() {
        let mut described = Described::default();
        described.asked(&request(1, RequestKind::Simple, None));
        described.learn(1, &describing("of another statement"));
        described.asked(&request(2, RequestKind::Execute, runs(1, Some(&[0]))));
        described.asked(&request(3, RequestKind::Execute, runs(3, None)));
        described.asked(&request(4, RequestKind::Execute, None));
        for number in 1..=5 {
            assert_eq!(heads(&described, number), None, "request {number}");
        }
    }

    #[test]
    fn a_statement_in_use_outlives_those_that_nobody_runs() {
        let mut described = Described::default();
        for number in [1, 2] {
            described.asked(&request(number, RequestKind::Prepare, None));
            described.learn(number, &describing("id"));
        }
        for number in 3..2 * u64::try_from(REQUESTS).unwrap() {
            described.asked(&request(number, RequestKind::Execute, runs(1, Some(&[]))));
        }
        assert!(heads(&described, 1).is_some() && heads(&described, 2).is_none());
        assert_eq!((described.requests.len(), described.used.len(), described.columns), (REQUESTS, REQUESTS, 1));
    }
}
