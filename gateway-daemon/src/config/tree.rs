//! The file as a tree, each key with the place where it stands. From it come the raw tables, and a fault for all that has
//! no place in them: unknown keys, missing ones, values of another type.
//!
//! serde stops at the first thing that it does not like. So what was told is taken out, a missing value is stood in for,
//! and the rest is read again: every fault is told, each once. What is said of a stand-in is not told.

use std::{collections::BTreeMap, ops::Range};

use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue, Error, ValueDeserializer},
};

use super::{
    error::Fault,
    raw,
    words::{ABOVE, doubled, missing, plainly, quoted_after, syntax, unknown},
};

/// Faults of this kind that are told: whoever has more has begun with another file.
const MOST: usize = 100;

/// Tables that stand once; all others are lists of tables.
pub(super) const SINGLE: [&str; 3] = ["daemon", "store", "limits"];

/// A file that is TOML.
pub(super) struct Tree<'a> {
    text: &'a str,
    root: DeTable<'a>,
}

/// A fault of the file's form, and which key of which table it leaves without a value to speak of.
pub(super) struct Misfit {
    fault: Fault,
    is_told: bool,
    path: Vec<Step>,
}

/// A step from the root to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Item(usize),
}

impl<'a> Tree<'a> {
    /// Reads a text.
    ///
    /// # Errors
    /// Where it is no TOML.
    pub(super) fn parse(text: &'a str) -> Result<Self, Fault> {
        match DeTable::parse(text) {
            Ok(root) => Ok(Self { text, root: root.into_inner() }),
            Err(error) => Err(Fault {
                line: error.span().map_or(0, |span| line_of(text, span.start)),
                key: String::new(),
                message: syntax(error.message()),
            }),
        }
    }

    /// The tables as far as they can be read, and what does not fit into them.
    pub(super) fn read(&self) -> (Option<raw::Root>, Vec<Misfit>) {
        let (mut root, mut misfits, mut stand_ins) = (self.root.clone(), Vec::new(), 0);
        for key in SINGLE {
            if let Some((name, value)) = self.root.get_key_value(key).filter(|(_, value)| value.get_ref().is_array()) {
                let message = format!("stands once, so its header has single brackets: `[{key}]`");
                let fault = Fault { line: self.line(value.span().start), key: key.to_owned(), message };
                misfits.push(Misfit { fault, is_told: true, path: vec![Step::Key(name.get_ref().to_string())] });
                root.remove(key);
            }
        }
        // Each turn tells a fault, or puts a stand-in into the place of one that was told; a stand-in is tried twice.
        for _ in 0..MOST.saturating_mul(3) {
            let value = Spanned::new(0..0, DeValue::Table(root.clone()));
            match raw::Root::deserialize(ValueDeserializer::from(value)) {
                Ok(raw) => return (Some(raw), misfits),
                Err(error) => {
                    if misfits.len() >= MOST || !self.take_out(&mut root, &error, &mut misfits, &mut stand_ins) {
                        return (None, misfits);
                    }
                }
            }
        }
        (None, misfits)
    }

    /// Tells `error`, and changes the tree so that it does not come again; false when that cannot be done.
    fn take_out(
        &self,
        root: &mut DeTable<'a>,
        error: &Error,
        misfits: &mut Vec<Misfit>,
        stand_ins: &mut usize,
    ) -> bool {
        let span = error.span().unwrap_or_default();
        let Some(mut path) = find(root, &span) else {
            let message = error.message().to_owned();
            let fault = Fault { line: 0, key: String::new(), message };
            misfits.push(Misfit { fault, is_told: true, path: Vec::new() });
            return false;
        };
        if let Some(key) = quoted_after(error.message(), "missing field `") {
            let table = path.clone();
            path.push(Step::Key(key.to_owned()));
            if misfits.iter().all(|misfit| misfit.path != path) {
                // One that is there under a name much like it is told by that.
                let is_misspelt = misfits.iter().any(|misfit| misfit.may_mean(&table, key));
                let line = self.line(span.start);
                let fault = Fault { line, key: self.key_of(&path), message: missing(table_of(&path), key) };
                misfits.push(Misfit { fault, is_told: !is_misspelt, path: path.clone() });
            }
            *stand_ins = stand_ins.saturating_add(1);
            // Where no byte of the file is, and no other stand-in: as long as a text is tried.
            let start = stand_ins.saturating_mul(2).saturating_add(self.text.len());
            return stand_in(root, &path, start..start.saturating_add(1), DeValue::String("".into()));
        }
        if span.start > self.text.len() {
            // Not a text, then: a list, or there is no standing in for it.
            let list = DeValue::Array(DeArray::new());
            return span.len() == 1 && stand_in(root, &path, span.start..span.end.saturating_add(1), list);
        }
        let message = match quoted_after(error.message(), "unknown field `") {
            Some(key) if path.len() == 1 && !self.root.get(key).is_some_and(|value| is_tables(value.get_ref())) => {
                ABOVE.to_owned()
            }
            Some(key) => unknown(key, error.message(), path.len() == 1),
            None if path.len() == 1 && error.message().ends_with("expected a sequence") => doubled(table_of(&path)),
            None => plainly(error.message()),
        };
        let fault = Fault { line: self.line(span.start), key: self.key_of(&path), message };
        while let Some(Step::Item(_)) = path.last() {
            path.pop();
        }
        misfits.push(Misfit { fault, is_told: true, path: path.clone() });
        change(root, &path, |table, key| drop(table.remove(key)))
    }

    /// The tables, each with its label and the line of its header.
    pub(super) fn tables(&self) -> impl Iterator<Item = (String, usize, &DeTable<'a>)> {
        self.root.iter().flat_map(|(kind, value)| {
            let one = value.get_ref().as_table().map(|table| (kind.get_ref().to_string(), value.span().start, table));
            let items = value.get_ref().as_array().into_iter().flatten();
            let items = items.filter_map(|item| {
                let table = item.get_ref().as_table()?;
                Some((label(kind.get_ref(), table), item.span().start, table))
            });
            one.into_iter().chain(items).map(|(label, start, table)| (label, self.line(start), table))
        })
    }

    /// The names in one list of tables, each with the line where it stands.
    pub(super) fn names(&self, kind: &str) -> Vec<(String, usize)> {
        let items = self.root.get(kind).and_then(|value| value.get_ref().as_array()).into_iter().flatten();
        items
            .filter_map(|item| {
                let name = item.get_ref().as_table()?.get("name")?;
                Some((name.get_ref().as_str()?.to_owned(), self.line(name.span().start)))
            })
            .collect()
    }

    /// The line of a key (`password.file`) of a table; of the item `nth` of its list, where that is asked for.
    pub(super) fn line_of_key(&self, table: &DeTable<'_>, key: &str, nth: Option<usize>) -> Option<usize> {
        let (mut table, mut found) = (Some(table), None);
        for part in key.split('.') {
            let Some((key, value)) = table.and_then(|table| table.get_key_value(part)) else { break };
            let item = nth.and_then(|nth| value.get_ref().as_array()?.get(nth));
            found = Some(self.line(item.map_or(key.span().start, |item| item.span().start)));
            table = value.get_ref().as_table();
        }
        found
    }

    /// Where each key of each table stands, by the name that people are told.
    pub(super) fn lines(&self) -> BTreeMap<String, usize> {
        let keys = self.tables().flat_map(|(label, _, table)| {
            table.iter().map(move |(key, _)| (format!("{label}.{}", key.get_ref()), self.line(key.span().start)))
        });
        keys.collect()
    }

    fn line(&self, offset: usize) -> usize {
        line_of(self.text, offset)
    }

    /// How people are told a path: `connection "orders".port`.
    fn key_of(&self, path: &[Step]) -> String {
        let mut shown = String::new();
        let mut steps = path.iter();
        if let Some(Step::Key(kind)) = steps.next() {
            let value = self.root.get(kind.as_str()).map(Spanned::get_ref);
            let item = match steps.clone().next() {
                Some(Step::Item(nth)) => value.and_then(|value| value.as_array()?.get(*nth)?.get_ref().as_table()),
                Some(Step::Key(_)) | None => None,
            };
            shown = item.map_or_else(|| kind.escape_debug().to_string(), |table| label(kind, table));
        }
        for step in steps {
            if let Step::Key(key) = step {
                shown = format!("{shown}.{}", key.escape_debug());
            }
        }
        shown
    }
}

impl Misfit {
    /// What people are told, unless another fault tells it.
    pub(super) fn told(self) -> Option<Fault> {
        self.is_told.then_some(self.fault)
    }

    /// Whether it is a key of `table` that does not exist, where `key` was probably meant.
    fn may_mean(&self, table: &[Step], key: &str) -> bool {
        let is_there = self.path.split_last().is_some_and(|(_, above)| above == table);
        is_there && self.fault.message.ends_with(&format!("did you mean `{key}`?"))
    }

    /// Whether it is about this key of the table that people know by `label`.
    pub(super) fn is_about(&self, label: &str, key: &str) -> bool {
        self.fault.key.strip_prefix(label).and_then(|rest| rest.strip_prefix('.')) == Some(key)
    }
}

/// How people are told which table it is: `connection "orders"`.
fn label(kind: &str, table: &DeTable<'_>) -> String {
    let named_by = match kind {
        "protect" => "address",
        "allow" => "reason",
        _ => "name",
    };
    match table.get(named_by).and_then(|name| name.get_ref().as_str()) {
        Some(name) => format!("{kind} \"{}\"", name.escape_debug()),
        None => format!("[[{kind}]]"),
    }
}

/// The kind of table that a path leads into.
fn table_of(path: &[Step]) -> &str {
    match path.first() {
        Some(Step::Key(kind)) => kind,
        Some(Step::Item(_)) | None => "",
    }
}

/// The way to what stands at `span`: a key, or a value.
fn find(root: &DeTable<'_>, span: &Range<usize>) -> Option<Vec<Step>> {
    let below = |value: &Spanned<DeValue<'_>>| match value.get_ref() {
        DeValue::Table(table) => find(table, span),
        DeValue::Array(items) => find_item(items, span),
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {
            None
        }
    };
    root.iter().find_map(|(key, value)| {
        let rest = match below(value) {
            Some(rest) => rest,
            None if key.span() == *span || value.span() == *span => Vec::new(),
            None => return None,
        };
        Some([vec![Step::Key(key.get_ref().to_string())], rest].concat())
    })
}

fn find_item(items: &DeArray<'_>, span: &Range<usize>) -> Option<Vec<Step>> {
    items.iter().enumerate().find_map(|(nth, item)| {
        let rest = match item.get_ref() {
            DeValue::Table(table) => find(table, span),
            DeValue::Array(items) => find_item(items, span),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => None,
        };
        let rest = rest.or_else(|| (item.span() == *span).then(Vec::new))?;
        Some([vec![Step::Item(nth)], rest].concat())
    })
}

/// Lets `act` change the table that holds the last key of `path`.
fn change<'a>(root: &mut DeTable<'a>, path: &[Step], act: impl FnOnce(&mut DeTable<'a>, &str)) -> bool {
    let Some((Step::Key(key), above)) = path.split_last() else { return false };
    let Some((Step::Key(first), rest)) = above.split_first() else {
        act(root, key);
        return true;
    };
    let mut value = root.get_mut(first.as_str());
    for step in rest {
        value = match (step, value.map(Spanned::get_mut)) {
            (Step::Key(key), Some(DeValue::Table(table))) => table.get_mut(key.as_str()),
            (Step::Item(nth), Some(DeValue::Array(items))) => items.get_mut(*nth),
            _ => None,
        };
    }
    match value.map(Spanned::get_mut) {
        Some(DeValue::Table(table)) => {
            act(table, key);
            true
        }
        _ => false,
    }
}

fn stand_in(root: &mut DeTable<'_>, path: &[Step], span: Range<usize>, value: DeValue<'static>) -> bool {
    change(root, path, |table, key| {
        table.insert(Spanned::new(span.clone(), key.to_owned().into()), Spanned::new(span, value));
    })
}

/// Whether a value is a table, or a list that may be of tables.
const fn is_tables(value: &DeValue<'_>) -> bool {
    matches!(value, DeValue::Table(_) | DeValue::Array(_))
}

/// The line, from 1, of a byte.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}
