//! From text to the server's own parse tree, with everything that could harm the parser refused before.

use std::panic;

use pg_query::protobuf::RawStmt;

use super::lex::{Kind, LexError, Lexer};

/// The stack that [`super::read`] wants of its thread: the parser, its decoder and the walker recurse as deep as the statement nests.
pub const PARSE_STACK_BYTES: usize = 16 << 20;
/// Bytes of one text.
pub const MAX_TEXT_BYTES: usize = 8 << 20;
/// Different things that one statement may do: each is a question to the policies, and all are asked before another session
/// of the thread goes on.
pub const MAX_ACCESSES: usize = 256;
/// Tokens of one text; the tree takes about a kilobyte for each.
pub const MAX_TOKENS: usize = 200_000;
/// How deep a statement may nest, by an estimate that is not below the tree's depth: brackets, operators in a row, joins,
/// set operations and CASE that are open at one place, weighted by the stack that each takes. Measured with pg_query
/// 18.1: 400 levels take at most 3 MiB of stack in an optimized build and 12 MiB in a debug build; libpg_query itself stops
/// at what an optimized build can decode in 16 MiB.
pub const MAX_NESTING: usize = 400;

/// What of a text is read, within what the parser can bear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// At most [`MAX_NESTING`].
    pub nesting: usize,
    /// At most [`MAX_TOKENS`].
    pub tokens: usize,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { nesting: MAX_NESTING, tokens: MAX_TOKENS }
    }
}

/// Why a text could not be read. It is then unknown, and refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Longer than is read.
    #[error("the statement has {len} bytes, more than {MAX_TEXT_BYTES}")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// More tokens than are read.
    #[error("the statement has more than {limit} tokens, the limit of limits.statement_tokens")]
    TooManyTokens {
        /// See [`ReadLimits::tokens`].
        limit: usize,
    },
    /// NUL ends a text for the server, but not for us.
    #[error("the statement holds a NUL byte")]
    Nul,
    /// Nested deeper than is read.
    #[error("the statement nests deeper than {limit} levels, the limit of limits.statement_nesting")]
    TooDeep {
        /// See [`ReadLimits::nesting`].
        limit: usize,
    },
    /// Each is a question to the policies.
    #[error(
        "the statement does {found} different things to tables and other objects, over the limit of {MAX_ACCESSES}"
    )]
    TooManyAccesses {
        /// How many.
        found: usize,
    },
    /// Not even tokens.
    #[error("the statement cannot be scanned")]
    Scan {
        /// Why.
        #[source]
        source: LexError,
    },
    /// PostgreSQL's grammar refuses it. The message quotes the statement, so it is for the agent and the record alone.
    #[error("{message}")]
    Syntax {
        /// In the server's words.
        message: String,
    },
    /// The parser failed in a way that says nothing of the statement.
    #[error("the parser failed")]
    Parser,
}

/// Parses a text that may hold several statements.
pub(super) fn parse(text: &str, limits: ReadLimits) -> Result<Vec<RawStmt>, ReadError> {
    check(text, limits)?;
    // The tree builder is another's code over the agent's bytes: a panic there ends one reading, not the session's thread.
    let parsed = panic::catch_unwind(|| pg_query::parse(text, pg_query::ParserOptions::DEFAULT))
        .map_err(|_| ReadError::Parser)?;
    match parsed {
        Ok(tree) => Ok(tree.protobuf.stmts),
        Err(pg_query::Error::Parse(message)) => Err(ReadError::Syntax { message }),
        Err(pg_query::Error::Conversion(_)) => Err(ReadError::Nul),
        Err(_) => Err(ReadError::Parser),
    }
}

/// The byte checks: whatever passes can neither overflow the stack nor keep the parser busy out of proportion.
fn check(text: &str, limits: ReadLimits) -> Result<(), ReadError> {
    let limits = ReadLimits { nesting: limits.nesting.min(MAX_NESTING), tokens: limits.tokens.min(MAX_TOKENS) };
    if text.len() > MAX_TEXT_BYTES {
        return Err(ReadError::TooLong { len: text.len() });
    }
    if text.bytes().any(|byte| byte == 0) {
        return Err(ReadError::Nul);
    }
    let mut depth = Depth::default();
    for (count, token) in Lexer::new(text).enumerate() {
        let token = token.map_err(|source| ReadError::Scan { source })?;
        if count >= limits.tokens {
            return Err(ReadError::TooManyTokens { limit: limits.tokens });
        }
        if depth.take(token.kind, text.get(token.range()).unwrap_or_default()) > limits.nesting {
            return Err(ReadError::TooDeep { limit: limits.nesting });
        }
    }
    Ok(())
}

/// An upper bound of how deep the tree is at a token.
///
/// The tree nests by brackets (CASE … END is one) and by what chains without them. Chains of operators end at a comma, AND
/// and OR, whose operands lie side by side; joins and set operations chain past those, so they count until their
/// bracket closes.
#[derive(Default)]
struct Depth {
    /// The brackets around the present one.
    outer: Vec<Level>,
    level: Level,
    /// The sum over `outer` and `level`.
    total: usize,
    /// A word behind a point or AS is a name, even where it is spelt like a keyword.
    name_follows: bool,
}

#[derive(Default)]
struct Level {
    /// CASE opened it, so END closes it.
    is_case: bool,
    /// It holds a query.
    is_query: bool,
    chain: usize,
    lasting: usize,
    /// BETWEENs whose AND has not come.
    between: usize,
}

impl Depth {
    fn take(&mut self, kind: Kind, token: &str) -> usize {
        let is_name = std::mem::take(&mut self.name_follows);
        match kind {
            Kind::Open => self.open(if token == "[" { 2 } else { 1 }, false),
            Kind::Close => self.close(),
            Kind::Comma => self.end_chain(),
            Kind::Semicolon => {
                self.total -= self.level.chain + self.level.lasting;
                self.level = Level { is_case: self.level.is_case, ..Level::default() };
            }
            // The server may take signs off the end of a run, each an operator of its own.
            Kind::Operator => self.chain(1 + token.bytes().skip(1).filter(|b| matches!(b, b'+' | b'-')).count()),
            Kind::Cast => self.chain(1),
            Kind::Dot => self.name_follows = true,
            Kind::Word => self.word(token, is_name),
            Kind::ForeignWord
            | Kind::QuotedName
            | Kind::PlainString
            | Kind::OtherString
            | Kind::PlainNumber
            | Kind::OtherNumber
            | Kind::Parameter
            | Kind::Other => {}
        }
        self.total
    }

    /// Words that nest count even where they may be names; those that end something do so only where they cannot be.
    fn word(&mut self, word: &str, is_name: bool) {
        let is = |keyword: &str| word.eq_ignore_ascii_case(keyword);
        match word.len() {
            2 if is("or") && !is_name => self.end_chain(),
            2 if is("as") => self.name_follows = !is_name,
            2 if is("is") || is("in") || is("at") => self.chain(1),
            // ORDER BY and its kin, a list within what holds it.
            2 if is("by") => self.lasting(1),
            3 if is("and") && !is_name => match self.level.between.checked_sub(1) {
                Some(rest) => self.level.between = rest,
                None => self.end_chain(),
            },
            3 if is("not") => self.chain(1),
            3 if is("end") && !is_name && self.level.is_case => self.close(),
            4 if is("case") && !is_name => self.open(2, true),
            4 if (is("when") || is("then") || is("else")) && !is_name && self.level.is_case => self.end_chain(),
            4 if is("join") => self.lasting(1),
            4 if is("with") => self.query(),
            4 if is("like") || is("over") => self.chain(1),
            5 if is("union") => self.lasting(1),
            5 if is("ilike") => self.chain(1),
            6 if is("select") || is("values") || is("insert") || is("update") || is("delete") => self.query(),
            6 if is("except") => self.lasting(1),
            6 if is("isnull") || is("escape") => self.chain(1),
            7 if is("between") => {
                self.level.between += 1;
                self.chain(2);
            }
            7 if is("notnull") || is("similar") || is("collate") => self.chain(1),
            8 if is("overlaps") || is("operator") => self.chain(1),
            9 if is("intersect") => self.lasting(1),
            _ if word.get(..3).is_some_and(|p| p.eq_ignore_ascii_case("xml") || p.eq_ignore_ascii_case("jso")) => {
                self.chain(1)
            }
            _ => {}
        }
    }

    fn open(&mut self, weight: usize, is_case: bool) {
        self.outer.push(std::mem::replace(&mut self.level, Level { is_case, ..Level::default() }));
        self.lasting(weight);
    }

    fn close(&mut self) {
        self.total -= self.level.chain + self.level.lasting;
        // Without an opening one it is a syntax error, and the count begins anew.
        self.level = self.outer.pop().unwrap_or_default();
    }

    fn query(&mut self) {
        if !std::mem::replace(&mut self.level.is_query, true) {
            self.lasting(2);
        }
    }

    fn chain(&mut self, by: usize) {
        self.level.chain += by;
        self.total += by;
    }

    fn lasting(&mut self, by: usize) {
        self.level.lasting += by;
        self.total += by;
    }

    fn end_chain(&mut self) {
        self.total -= self.level.chain;
        self.level.chain = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<RawStmt>, ReadError> {
        super::parse(text, ReadLimits::default())
    }

    #[test]
    fn deep_nesting_is_refused_before_the_parser_sees_it() {
        let many = MAX_NESTING + 1;
        for text in [
            format!("SELECT {}1{}", "(".repeat(many), ")".repeat(many)),
            format!("SELECT 1{}", "+1".repeat(many)),
            format!("SELECT {}true", "NOT ".repeat(many)),
            format!("SELECT {}1{}", "CASE WHEN a THEN 1 ELSE ".repeat(many), " END".repeat(many)),
            format!("SELECT 1{}", " UNION SELECT 1".repeat(many)),
            format!("SELECT FROM t{}", " JOIN t ON a AND b".repeat(many)),
            format!("SELECT a{}", "::text".repeat(many)),
            format!("SELECT {}1{}", "ARRAY[".repeat(many), "]".repeat(many)),
            // The ANDs belong to BETWEEN, or are names: they end no chain.
            format!("SELECT 1{}", " BETWEEN 1 AND NOT 1".repeat(many)),
            format!("SELECT 1{}", " + a.and".repeat(many)),
            format!("SELECT 1{}", " + a . /* x */ OR".repeat(many)),
        ] {
            assert_eq!(parse(&text), Err(ReadError::TooDeep { limit: MAX_NESTING }), "{}", &text[..40]);
        }
    }

    #[test]
    fn what_clients_write_is_not_too_deep() {
        let terms = |sep: &str, n: usize| (0..n).map(|i| format!("a + {i} = b || 'x'")).collect::<Vec<_>>().join(sep);
        for text in [
            format!("SELECT * FROM t WHERE {}", terms(" OR ", 10_000)),
            format!(
                "SELECT * FROM t WHERE id IN ({})",
                (0..10_000).map(|i| i.to_string()).collect::<Vec<_>>().join(", ")
            ),
            format!("INSERT INTO t VALUES {}", vec!["(1, -2, 'x', now() - interval '1 day')"; 3000].join(", ")),
            format!("SELECT 1{}", " || 'x'".repeat(200)),
            format!("SELECT {}", vec!["CASE WHEN a THEN 1 END"; 300].join(", ")),
            "SELECT 1;".repeat(2000),
        ] {
            std::thread::Builder::new()
                .stack_size(PARSE_STACK_BYTES)
                .spawn(move || assert!(parse(&text).is_ok(), "{}", &text[..60]))
                .unwrap()
                .join()
                .unwrap();
        }
    }

    #[test]
    fn bytes_that_cannot_be_a_statement_are_refused() {
        assert_eq!(parse("SELECT 1\0; DROP TABLE t"), Err(ReadError::Nul));
        assert_eq!(parse(&" ".repeat(MAX_TEXT_BYTES + 1)), Err(ReadError::TooLong { len: MAX_TEXT_BYTES + 1 }));
        assert_eq!(parse(&"1,".repeat(MAX_TOKENS)), Err(ReadError::TooManyTokens { limit: MAX_TOKENS }));
        assert_eq!(parse("SELECT 'a"), Err(ReadError::Scan { source: LexError::Unterminated }));
        assert!(matches!(parse("SELEC 1"), Err(ReadError::Syntax { .. })));
        assert!(parse("))))))) + ((((").is_err());
    }
}
