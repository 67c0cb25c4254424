//! Where in a text an error stands, in characters from 1, as ErrorResponse's field `P` has it.
//!
//! Looked for when there is something to tell, in the text that the agent sent: a reading may be another text's of the same
//! shape, and says nothing of places. What is not found for sure has no place.

use std::panic;

use pg_query::{
    NodeRef,
    protobuf::{ParseResult, RangeVar},
};

use super::{
    access::{Access, Action, Object},
    lex::Lexer,
    names::cut,
    parse::{ReadError, ReadLimits, parse},
};

/// Longer texts are not read a second time for a place.
const MAX_BYTES: usize = 16 << 10;
/// Tokens that are tried as the one where the grammar gave up.
const MAX_TRIES: usize = 16;

/// Where a text does what an access says: names the relation, or calls the function. A relation that is both read and
/// changed stands at two places; each access has its own.
pub fn place_of(text: &str, access: &Access) -> Option<usize> {
    if text.len() > MAX_BYTES {
        return None;
    }
    let stmts = parse(text, ReadLimits::default()).ok()?;
    // Another's code over the agent's bytes, as in `parse`.
    let location = panic::catch_unwind(|| {
        let tree = ParseResult { version: 0, stmts };
        let nodes = tree.stmts.iter().filter_map(|raw| raw.stmt.as_ref()?.node.as_ref()).flat_map(|node| node.nodes());
        among(&nodes.map(|(node, ..)| node).collect::<Vec<_>>(), access)
    });
    characters(text, usize::try_from(location.ok()??).ok()?)
}

fn among(nodes: &[NodeRef<'_>], access: &Access) -> Option<i32> {
    let named = || nodes.iter().filter_map(|node| location(*node, &access.object));
    let changed = |action: Option<Action>| {
        let targets = nodes.iter().filter_map(|node| target(*node));
        let targets = targets.filter(move |(does, _)| action.is_none_or(|action| does.contains(&action)));
        targets.filter_map(|(_, relation)| location(NodeRef::RangeVar(relation), &access.object))
    };
    if [Action::Insert, Action::Update, Action::Delete].contains(&access.action) {
        // FOR UPDATE locks what FROM names, which is certain where that is named once.
        return changed(Some(access.action)).min().or_else(|| named().next().filter(|_| named().count() == 1));
    }
    named().filter(|at| !changed(None).any(|target| target == *at)).min().or_else(|| named().min())
}

/// What a statement changes, and how.
fn target(node: NodeRef<'_>) -> Option<(&'static [Action], &RangeVar)> {
    match node {
        NodeRef::InsertStmt(e) => Some((&[Action::Insert, Action::Update], e.relation.as_ref()?)),
        NodeRef::UpdateStmt(e) => Some((&[Action::Update], e.relation.as_ref()?)),
        NodeRef::DeleteStmt(e) => Some((&[Action::Delete], e.relation.as_ref()?)),
        NodeRef::MergeStmt(e) => Some((&[Action::Insert, Action::Update, Action::Delete], e.relation.as_ref()?)),
        _ => None,
    }
}

/// Where a node begins that names the object.
fn location(node: NodeRef<'_>, object: &Object) -> Option<i32> {
    match (node, object) {
        (NodeRef::RangeVar(relation), Object::Relation { schema, name }) => {
            let named = cut(&relation.relname) == *name;
            let there = relation.schemaname.is_empty() || cut(&relation.schemaname) == *schema;
            (named && there).then_some(relation.location)
        }
        (NodeRef::FuncCall(call), Object::Function { name, .. }) => {
            let called = call.funcname.last().and_then(super::walk::text)?;
            (cut(called) == *name).then_some(call.location)
        }
        _ => None,
    }
}

/// Where the grammar gave up. The parser tells the token and not its place; but it gives up at the first token that fits
/// nothing, so the text that ends with that token fails with it, and no shorter one does.
pub fn place_of_syntax_error(text: &str, error: &ReadError) -> Option<usize> {
    let ReadError::Syntax { message } = error else { return None };
    if text.len() > MAX_BYTES {
        return None;
    }
    if message.ends_with(" at end of input") {
        return characters(text, text.len());
    }
    let (_, near) = message.split_once(" at or near \"")?;
    let near = near.strip_suffix('"')?;
    let starts = Lexer::new(text).map_while(Result::ok).map(|token| token.start);
    let candidates = starts.filter(|&start| {
        text.get(start..).and_then(|rest| rest.strip_prefix(near)).is_some_and(|after| !goes_on(near, after))
    });
    let start = candidates.take(MAX_TRIES).find(|start| {
        let upto = text.get(..start.saturating_add(near.len())).unwrap_or_default();
        matches!(parse(upto, ReadLimits::default()), Err(ReadError::Syntax { message: again }) if again == *message)
    })?;
    characters(text, start)
}

/// Whether the last word of `near` is only the start of a longer one.
fn goes_on(near: &str, after: &str) -> bool {
    let is_of_word = |character: char| character.is_alphanumeric() || matches!(character, '_' | '$');
    near.chars().next_back().is_some_and(is_of_word) && after.chars().next().is_some_and(is_of_word)
}

/// The number of the character that begins at this byte.
fn characters(text: &str, byte: usize) -> Option<usize> {
    text.get(..byte)?.chars().count().checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::Columns;

    /// The place, checked against a mark in the text.
    fn marked(marked: &str) -> (String, Option<usize>) {
        let place = marked.chars().position(|character| character == '▲').map(|at| at + 1);
        (marked.replace('▲', ""), place)
    }

    #[test]
    fn a_syntax_error_stands_where_postgresql_puts_it() {
        for text in [
            "SELECT * ▲FORM t",
            "SELECT 'größe', \"日本\" AS x ▲FORM t",
            "SELECT FROM ▲FROM t FROM u",
            "SELECT a FROM t WHERE (▲",
            "▲SELEC 1",
            "SELECT 1;\n-- é\nSELECT ▲) FROM t",
            "INSERT INTO t VALUES (1)▲)",
            "SELECT 1 + ▲* 2 * 3",
            // The first is no place, though the text that ends within it fails alike.
            "CREATE TABLE t (a int NOT NULL, b int NOT ▲NUL, c int)",
        ] {
            let (text, place) = marked(text);
            let error = parse(&text, ReadLimits::default()).unwrap_err();
            assert_eq!(place_of_syntax_error(&text, &error), place, "{text}: {error}");
        }
    }

    #[test]
    fn what_is_refused_stands_where_the_text_does_it() {
        let relation = |schema: &str, name: &str| Object::Relation { schema: schema.into(), name: name.into() };
        let function = Object::Function { schema: "public".into(), name: "f".into() };
        for (text, action, object) in [
            ("SELECT secrets.a, 'é' FROM ▲secrets", Action::Select, relation("public", "secrets")),
            ("SELECT 1 FROM b.secrets, ▲a.secrets", Action::Select, relation("a", "secrets")),
            ("WITH x AS (SELECT '日本' FROM ▲\"S\") SELECT * FROM x", Action::Select, relation("public", "S")),
            ("UPDATE ▲t SET a = 1", Action::Update, relation("public", "t")),
            ("UPDATE ▲t SET a = 1 WHERE b = 2", Action::Select, relation("public", "t")),
            ("SELECT 1; DELETE FROM ▲t", Action::Delete, relation("public", "t")),
            ("WITH x AS (SELECT * FROM t) DELETE FROM ▲t", Action::Delete, relation("public", "t")),
            ("INSERT INTO t SELECT * FROM ▲t", Action::Select, relation("public", "t")),
            ("INSERT INTO ▲t SELECT * FROM t", Action::Insert, relation("public", "t")),
            ("SELECT * FROM ▲t FOR UPDATE", Action::Update, relation("public", "t")),
            ("SELECT * FROM t x, t y FOR UPDATE", Action::Update, relation("public", "t")),
            ("SELECT 'ü', ▲f(1)", Action::Call, function),
            ("SELECT 1 FROM other", Action::Select, relation("public", "t")),
        ] {
            let (text, place) = marked(text);
            let access = Access { action, object, columns: Columns::None };
            assert_eq!(place_of(&text, &access), place, "{text}");
        }
    }
}
