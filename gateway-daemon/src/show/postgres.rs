//! Recorded `PostgreSQL` messages as people read them: results as tables, errors with their fields, COPY as lines.
//! Layouts: `PostgreSQL` manual, "Message Formats". The bytes are the record's; whatever is wrong with them is said.

use std::{fmt::Write, sync::Arc};

use super::{
    RowLimit,
    described::Column,
    escape::{bytes, line},
    table::{Align, Table},
    value::{binary, is_number},
};

/// Characters of a value, and of a name, that are shown.
pub(super) const VALUE: usize = 200;
const NAME: usize = 63;
/// A message that is longer is named and passed over.
const LONGEST: usize = 16 * 1024 * 1024;
/// Rows after which a table is written and its heads repeated, so that a big result is not held.
const TABLE_ROWS: usize = 500;
/// Lays out the messages of one request in one direction, however they were cut.
#[derive(Debug)]
pub(super) struct Messages {
    limit: RowLimit,
    indent: usize,
    /// The beginning of a message whose end has not come.
    held: Vec<u8>,
    /// Bytes of a message that is passed over.
    pass: usize,
    /// What was described in these messages.
    described: Option<Arc<[Column]>>,
    parameters: Option<Arc<[u32]>>,
    /// What rows are laid out by.
    columns: Arc<[Column]>,
    table: Option<Table>,
    rows: u64,
}

/// What is wrong with a message.
#[derive(Debug)]
pub(super) struct Cut;

impl Messages {
    pub(super) fn new(limit: RowLimit, indent: usize) -> Self {
        Self {
            limit,
            indent,
            held: Vec::new(),
            pass: 0,
            described: None,
            parameters: None,
            columns: Arc::default(),
            table: None,
            rows: 0,
        }
    }

    /// The columns that these messages described last.
    pub(super) const fn described(&self) -> Option<&Arc<[Column]>> {
        self.described.as_ref()
    }

    /// The types of parameters that these messages described.
    pub(super) const fn parameters(&self) -> Option<&Arc<[u32]>> {
        self.parameters.as_ref()
    }

    /// Lays rows out by what was described elsewhere, until these messages describe them themselves.
    pub(super) fn expect(&mut self, columns: Arc<[Column]>) {
        if self.described.is_none() && self.table.is_none() {
            self.columns = columns;
        }
    }

    /// Takes the next bytes; what became complete is added to `out`.
    pub(super) fn feed(&mut self, more: &[u8], out: &mut String) {
        let passed = self.pass.min(more.len());
        self.pass = self.pass.saturating_sub(passed);
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(more.get(passed..).unwrap_or_default());
        let mut rest = held.as_slice();
        while let Some((&[tag, len @ ..], behind)) = rest.split_first_chunk::<5>() {
            let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
            let Some(body) = len.checked_sub(4) else {
                self.note(out, "the rest is not messages of PostgreSQL");
                rest = &[];
                // Nothing that follows can be placed either.
                self.pass = usize::MAX;
                break;
            };
            if body > LONGEST {
                self.note(out, &format!("a message `{}` of {len} bytes", char::from(tag).escape_default()));
                let here = body.min(behind.len());
                self.pass = body.saturating_sub(here);
                rest = behind.get(here..).unwrap_or_default();
                continue;
            }
            let Some((body, behind)) = behind.split_at_checked(body) else { break };
            if self.message(tag, body, out).is_err() {
                self.note(out, &format!("a message `{}` that is cut off", char::from(tag).escape_default()));
            }
            rest = behind;
        }
        self.held = rest.to_vec();
    }

    /// Adds what is left: a table without its end, a message that was cut.
    pub(super) fn finish(mut self, out: &mut String) {
        self.end_table(out);
        if !self.held.is_empty() {
            self.note(out, &format!("cut here, {} bytes into a message", self.held.len()));
        }
    }

    fn message(&mut self, tag: u8, body: &[u8], out: &mut String) -> Result<(), Cut> {
        match tag {
            b'T' => self.row_description(body, out),
            b't' => self.parameter_description(body),
            b'D' => self.data_row(body, out),
            b'd' => {
                self.copy_data(body, out);
                Ok(())
            }
            b'C' => {
                let tag = take_str(&mut &*body)?;
                self.end_table(out);
                self.put(out, &bytes(tag, VALUE));
                Ok(())
            }
            b'E' | b'N' => self.fields(body, out),
            b'A' => {
                let mut body = body;
                take::<4>(&mut body)?;
                let (channel, payload) = (take_str(&mut body)?, take_str(&mut body)?);
                self.put(out, &format!("NOTIFY {}: {}", bytes(channel, NAME), bytes(payload, VALUE)));
                Ok(())
            }
            b'S' => {
                let mut body = body;
                let Ok(name) = take_str(&mut body) else { return Ok(()) };
                let value = take_str(&mut body)?;
                self.put(out, &format!("setting {} = {}", bytes(name, NAME), bytes(value, VALUE)));
                Ok(())
            }
            b'I' => {
                self.put(out, "(empty statement)");
                Ok(())
            }
            b's' => {
                self.end_table(out);
                self.put(out, "(portal suspended, more rows to fetch)");
                Ok(())
            }
            b'f' => {
                self.end_table(out);
                self.put(out, &format!("COPY failed: {}", bytes(take_str(&mut &*body)?, VALUE)));
                Ok(())
            }
            b'c' => {
                self.end_table(out);
                Ok(())
            }
            // Parse, Bind and Close done, no data, ready, copy begins: no more than their order.
            b'1' | b'2' | b'3' | b'n' | b'Z' | b'G' | b'H' | b'W' => Ok(()),
            tag => {
                self.note(out, &format!("a message `{}` of {} bytes", char::from(tag).escape_default(), body.len()));
                Ok(())
            }
        }
    }

    fn row_description(&mut self, mut body: &[u8], out: &mut String) -> Result<(), Cut> {
        self.end_table(out);
        let count = u16::from_be_bytes(take(&mut body)?);
        let mut columns = Vec::new();
        for _ in 0..count {
            let name = bytes(take_str(&mut body)?, NAME);
            // The table's OID and the column's number in it.
            take::<6>(&mut body)?;
            let kind = u32::from_be_bytes(take(&mut body)?);
            // The type's size and modifier.
            take::<6>(&mut body)?;
            let binary = u16::from_be_bytes(take(&mut body)?) == 1;
            columns.push(Column { name, kind, binary });
        }
        self.columns = columns.into();
        self.described = Some(self.columns.clone());
        self.begin_table();
        Ok(())
    }

    fn parameter_description(&mut self, mut body: &[u8]) -> Result<(), Cut> {
        let count = u16::from_be_bytes(take(&mut body)?);
        let types: Result<_, Cut> = (0..count).map(|_| take(&mut body).map(u32::from_be_bytes)).collect();
        self.parameters = Some(types?);
        Ok(())
    }

    fn begin_table(&mut self) {
        let table = self.columns.iter().fold(Table::new(), |table, column| {
            let align = if is_number(column.kind) { Align::Right } else { Align::Left };
            table.column(column.name.clone(), align)
        });
        self.table = Some(table);
    }

    fn data_row(&mut self, mut body: &[u8], out: &mut String) -> Result<(), Cut> {
        let count = usize::from(u16::from_be_bytes(take(&mut body)?));
        let mut cells = Vec::new();
        for at in 0..count {
            let len = i32::from_be_bytes(take(&mut body)?);
            let Ok(len) = usize::try_from(len) else {
                // Weir's own word: the text `NULL` has no such brackets.
                cells.push("⟦NULL⟧".to_owned());
                continue;
            };
            let (value, rest) = body.split_at_checked(len).ok_or(Cut)?;
            body = rest;
            cells.push(match self.columns.get(at) {
                Some(column) if column.binary => binary(column.kind, value),
                Some(_) | None => bytes(value, VALUE),
            });
        }
        if self.columns.len() != count {
            // No description is known, or it is not of this row.
            self.end_table(out);
            let unnamed = |at| Column { name: format!("column {at}"), kind: 0, binary: false };
            self.columns = (1..=count).map(unnamed).collect();
        }
        if self.table.is_none() {
            self.begin_table();
        }
        self.row(cells, out);
        Ok(())
    }

    fn copy_data(&mut self, body: &[u8], out: &mut String) {
        if self.table.is_none() {
            self.table = Some(Table::new().column("COPY", Align::Left));
        }
        let text = body.strip_suffix(b"\n").unwrap_or(body);
        self.row(vec![bytes(text, VALUE)], out);
    }

    fn row(&mut self, cells: Vec<String>, out: &mut String) {
        let before = self.rows;
        self.rows = before.saturating_add(1);
        let Some(table) = self.table.as_mut().filter(|_| self.limit.shows(before)) else { return };
        table.row(cells);
        if table.len() >= TABLE_ROWS {
            out.push_str(&table.render(self.indent));
            self.begin_table();
        }
    }

    /// Writes the table, if there is one, and counts the rows that it does not show.
    fn end_table(&mut self, out: &mut String) {
        let Some(table) = self.table.take() else { return };
        out.push_str(&table.render(self.indent));
        if let RowLimit::First(limit) = self.limit
            && let more @ 1.. = self.rows.saturating_sub(limit)
        {
            self.note(out, &format!("… {more} more rows"));
        }
        self.rows = 0;
    }

    /// ErrorResponse and NoticeResponse: severity, code and message first, then what else people want.
    fn fields(&mut self, mut body: &[u8], out: &mut String) -> Result<(), Cut> {
        self.end_table(out);
        let (mut first, mut rest) = ([const { String::new() }; 3], Vec::new());
        let [severity, code, message] = &mut first;
        loop {
            let [field] = take(&mut body)?;
            if field == 0 {
                break;
            }
            let text = bytes(take_str(&mut body)?, 1000);
            match field {
                b'S' => *severity = text,
                b'C' => *code = text,
                b'M' => *message = text,
                b'D' => rest.push(format!("detail: {text}")),
                b'H' => rest.push(format!("hint: {text}")),
                b'W' => rest.push(format!("where: {text}")),
                b'P' => rest.push(format!("position: {text}")),
                b's' | b't' | b'c' | b'd' | b'n' => {
                    rest.push(format!("{}: {text}", line(char::from(field).encode_utf8(&mut [0; 4]), 1)));
                }
                // V repeats S; p, q, F, L and R speak of the server's own code.
                _ => {}
            }
        }
        self.put(out, &format!("{severity} {code}: {message}"));
        rest.iter().for_each(|text| self.put(out, &format!("  {text}")));
        Ok(())
    }

    fn put(&self, out: &mut String, text: &str) {
        // A `String` takes all that is written to it.
        let _ = writeln!(out, "{:indent$}{text}", "", indent = self.indent);
    }

    fn note(&self, out: &mut String, text: &str) {
        self.put(out, &format!("⟦{text}⟧"));
    }
}

pub(super) fn take<const N: usize>(body: &mut &[u8]) -> Result<[u8; N], Cut> {
    let (taken, rest) = body.split_first_chunk().ok_or(Cut)?;
    *body = rest;
    Ok(*taken)
}

fn take_str<'b>(body: &mut &'b [u8]) -> Result<&'b [u8], Cut> {
    let end = body.iter().position(|byte| *byte == 0).ok_or(Cut)?;
    let (text, rest) = body.split_at_checked(end).ok_or(Cut)?;
    *body = rest.get(1..).unwrap_or_default();
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::show) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag], &len[..], body].concat()
    }

    fn description(columns: &[(&str, u32, u16)]) -> Vec<u8> {
        let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for (name, kind, format) in columns {
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(&[0; 7]);
            body.extend_from_slice(&kind.to_be_bytes());
            body.extend_from_slice(&[0; 6]);
            body.extend_from_slice(&format.to_be_bytes());
        }
        message(b'T', &body)
    }

    fn row(values: &[Option<&[u8]>]) -> Vec<u8> {
        let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
        for value in values {
            match value {
                None => body.extend_from_slice(&(-1i32).to_be_bytes()),
                Some(value) => {
                    body.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
                    body.extend_from_slice(value);
                }
            }
        }
        message(b'D', &body)
    }

    fn result() -> Vec<u8> {
        [
            message(b'1', b""),
            description(&[("id", 23, 1), ("name", 25, 0), ("na\u{202e}me\x1b[31m", 17, 1), ("when", 1184, 1)]),
            row(&[Some(&7i32.to_be_bytes()), Some(b"NULL"), None, Some(&[0, 0, 0, 1])]),
            row(&[
                Some(&(-1i32).to_be_bytes()),
                Some("p\u{430}y\x1b]0;x\x07\nDENY".as_bytes()),
                Some(&[0xff, 1]),
                None,
            ]),
            row(&[Some(&[1, 2]), Some(b""), Some(b""), Some(b"")]),
            message(b'C', b"SELECT 3\0"),
            message(b'Z', b"I"),
        ]
        .concat()
    }

    fn shown(recorded: &[u8], limit: RowLimit) -> String {
        let (mut messages, mut out) = (Messages::new(limit, 2), String::new());
        messages.feed(recorded, &mut out);
        messages.finish(&mut out);
        out
    }

    #[test]
    fn results_are_tables_and_null_is_no_text() {
        insta::assert_snapshot!(shown(&result(), RowLimit::All));
        insta::assert_snapshot!(shown(&result(), RowLimit::First(1)));
    }

    #[test]
    fn errors_copies_and_what_else_a_server_says() {
        let error = b"SERROR\0VERROR\0C42501\0Mrefused by policy\x1b[2J\0Dupdate on public.x\0Hask\0Fparse.c\0\0";
        let recorded = [
            message(b'E', error),
            message(b'H', &[0, 0, 1, 0, 0]),
            message(b'd', b"1\tx\\N\n"),
            message(b'd', &[0xff, 0xfe]),
            message(b'c', b""),
            message(b'C', b"COPY 2\0"),
            row(&[Some(b"no"), Some(b"description")]),
            message(b's', b""),
            message(b'A', b"\0\0\0\x01channel\0pay\x07load\0"),
            message(b'S', b"TimeZone\0UTC\0"),
            message(b'I', b""),
            message(b'?', b"xyz"),
            message(b'C', b"no end"),
            b"D\0\0\0\x20cut".to_vec(),
        ];
        insta::assert_snapshot!(shown(&recorded.concat(), RowLimit::First(10)));
        assert_eq!(shown(b"HTTP/1.1 200 OK\r\n", RowLimit::All), "  ⟦a message `H` of 1414811695 bytes⟧\n");
        assert_eq!(shown(b"X\0\0\0\0more", RowLimit::All), "  ⟦the rest is not messages of PostgreSQL⟧\n");
    }

    #[test]
    fn a_split_anywhere_shows_the_same() {
        let (recorded, whole) = (result(), shown(&result(), RowLimit::All));
        for at in 0..recorded.len() {
            let (mut messages, mut out) = (Messages::new(RowLimit::All, 2), String::new());
            messages.feed(&recorded[..at], &mut out);
            messages.feed(&recorded[at..], &mut out);
            messages.finish(&mut out);
            assert_eq!(out, whole, "cut at {at}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_shown_and_none_panics(tags in proptest::collection::vec(("[TDdCENASIsfcZ?]", proptest::collection::vec(proptest::num::u8::ANY, 0..60)), 0..10)) {
            let recorded: Vec<u8> = tags.iter().flat_map(|(tag, body)| message(tag.as_bytes()[0], body)).collect();
            let out = shown(&recorded, RowLimit::First(3));
            proptest::prop_assert!(out.chars().all(|c| c == '\n' || !c.is_control()));
        }
    }
}
