//! A scanner of our own, beside the server's: it finds where tokens begin and end, as `scan.l` of PostgreSQL 13 to 18 does
//! with `standard_conforming_strings = on`, and nothing more. The byte checks, the shape of a statement and the redaction
//! of secrets stand on it; what a statement means is never read from it.

use std::ops::Range;

/// Levels of `/* /* … */ */`. Nested comments cost the server and the parser quadratic time.
pub const MAX_COMMENT_DEPTH: usize = 64;

/// What kind of token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Identifier or keyword, ASCII.
    Word,
    /// Identifier with other characters.
    ForeignWord,
    /// `"…"` or `U&"…"`.
    QuotedName,
    /// `'…'`, without prefix, backslash or continuation on another line.
    PlainString,
    /// Every other string: `E'…'`, `U&'…'`, `B'…'`, `X'…'`, `N'…'`, dollar quotes, continued ones, those with a backslash.
    OtherString,
    /// A number of digits alone, or with a point.
    PlainNumber,
    /// Every other number: exponents, radix prefixes, underscores, or a letter right behind.
    OtherNumber,
    /// `$1`.
    Parameter,
    /// A run of operator characters; the server may read it as several operators.
    Operator,
    /// `::`
    Cast,
    /// `(` or `[`
    Open,
    /// `)` or `]`
    Close,
    /// `,`
    Comma,
    /// `;`
    Semicolon,
    /// `.`
    Dot,
    /// Whatever else.
    Other,
}

/// A token and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
    /// A comment stands before it.
    pub(super) after_comment: bool,
}

impl Token {
    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// What the scanner will not go past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LexError {
    /// Beyond [`MAX_COMMENT_DEPTH`].
    #[error("comments are nested deeper than {MAX_COMMENT_DEPTH} levels")]
    CommentDepth,
    /// A comment, string or quoted name does not end.
    #[error("a comment, string or quoted name has no end")]
    Unterminated,
}

/// The tokens of a text. After an error it gives nothing more.
pub(super) struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    /// Ends with a comment, which no token follows.
    pub(super) trailing_comment: bool,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text: text.as_bytes(), at: 0, trailing_comment: false }
    }

    fn byte(&self, at: usize) -> u8 {
        // NUL is refused before, so it can stand for the end.
        self.text.get(at).copied().unwrap_or(0)
    }

    fn token(&mut self) -> Result<Option<Token>, LexError> {
        let after_comment = self.skip_blank()?;
        self.trailing_comment = after_comment;
        let start = self.at;
        if start >= self.text.len() {
            return Ok(None);
        }
        let byte = self.byte(start);
        self.at += 1;
        let kind = match byte {
            b'(' | b'[' => Kind::Open,
            b')' | b']' => Kind::Close,
            b',' => Kind::Comma,
            b';' => Kind::Semicolon,
            b'\'' => self.string(start + 1, false)?,
            b'"' => self.quoted_name(start + 1)?,
            b'.' if self.byte(start + 1).is_ascii_digit() => self.number(start),
            b'.' => Kind::Dot,
            b':' if self.byte(start + 1) == b':' => {
                self.at += 1;
                Kind::Cast
            }
            b'$' => self.dollar(start)?,
            b'0'..=b'9' => self.number(start),
            _ if is_name_start(byte) => self.word(start)?,
            _ if is_operator(byte) => self.operator(start),
            _ => Kind::Other,
        };
        Ok(Some(Token { kind, start, end: self.at, after_comment }))
    }

    /// Passes white space and comments; whether there was a comment.
    fn skip_blank(&mut self) -> Result<bool, LexError> {
        let mut comment = false;
        loop {
            match self.byte(self.at) {
                b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => self.at += 1,
                b'-' if self.byte(self.at + 1) == b'-' => {
                    self.line_comment();
                    comment = true;
                }
                b'/' if self.byte(self.at + 1) == b'*' => {
                    self.block_comment()?;
                    comment = true;
                }
                _ => return Ok(comment),
            }
        }
    }

    fn line_comment(&mut self) {
        while self.at < self.text.len() && !matches!(self.byte(self.at), b'\n' | b'\r') {
            self.at += 1;
        }
    }

    fn block_comment(&mut self) -> Result<(), LexError> {
        let mut depth = 0usize;
        while self.at < self.text.len() {
            match (self.byte(self.at), self.byte(self.at + 1)) {
                (b'/', b'*') => {
                    depth += 1;
                    if depth > MAX_COMMENT_DEPTH {
                        return Err(LexError::CommentDepth);
                    }
                    self.at += 2;
                }
                (b'*', b'/') => {
                    self.at += 2;
                    depth -= 1;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                _ => self.at += 1,
            }
        }
        Err(LexError::Unterminated)
    }

    /// A string whose first byte behind the quote is at `at`. `escapes`: a backslash takes the next byte with it.
    fn string(&mut self, mut at: usize, escapes: bool) -> Result<Kind, LexError> {
        let mut kind = if escapes { Kind::OtherString } else { Kind::PlainString };
        loop {
            if at >= self.text.len() {
                return Err(LexError::Unterminated);
            }
            match self.byte(at) {
                b'\\' => {
                    kind = Kind::OtherString;
                    at += if escapes { 2 } else { 1 };
                }
                b'\'' if self.byte(at + 1) == b'\'' => at += 2,
                b'\'' => {
                    at += 1;
                    match self.continued(at) {
                        // A literal goes on behind a line's end, in the mode in which it began.
                        Some(next) => {
                            kind = Kind::OtherString;
                            at = next;
                        }
                        None => {
                            self.at = at;
                            return Ok(kind);
                        }
                    }
                }
                _ => at += 1,
            }
        }
    }

    /// Where a literal that was closed before `at` goes on: behind blanks with a line's end, and `--` comments.
    fn continued(&self, mut at: usize) -> Option<usize> {
        let mut newline = false;
        loop {
            match self.byte(at) {
                b'\n' | b'\r' => {
                    newline = true;
                    at += 1;
                }
                b' ' | b'\t' | 0x0b | 0x0c => at += 1,
                b'-' if self.byte(at + 1) == b'-' => {
                    while at < self.text.len() && !matches!(self.byte(at), b'\n' | b'\r') {
                        at += 1;
                    }
                }
                b'\'' if newline => return Some(at + 1),
                _ => return None,
            }
        }
    }

    fn quoted_name(&mut self, mut at: usize) -> Result<Kind, LexError> {
        loop {
            if at >= self.text.len() {
                return Err(LexError::Unterminated);
            }
            match (self.byte(at), self.byte(at + 1)) {
                (b'"', b'"') => at += 2,
                (b'"', _) => {
                    self.at = at + 1;
                    return Ok(Kind::QuotedName);
                }
                _ => at += 1,
            }
        }
    }

    /// A parameter, a dollar-quoted string, or a lone `$`.
    fn dollar(&mut self, start: usize) -> Result<Kind, LexError> {
        let mut at = start + 1;
        if self.byte(at).is_ascii_digit() {
            while self.byte(at).is_ascii_digit() {
                at += 1;
            }
            self.at = at;
            return Ok(if is_name_start(self.byte(at)) { Kind::Other } else { Kind::Parameter });
        }
        if is_name_start(self.byte(at)) {
            while is_name_start(self.byte(at)) || self.byte(at).is_ascii_digit() {
                at += 1;
            }
        }
        if self.byte(at) != b'$' {
            return Ok(Kind::Other);
        }
        let tag = self.text.get(start..=at).unwrap_or_default();
        let body = at + 1;
        let rest = self.text.get(body..).unwrap_or_default();
        let end = rest.windows(tag.len()).position(|window| window == tag).ok_or(LexError::Unterminated)?;
        self.at = body + end + tag.len();
        Ok(Kind::OtherString)
    }

    fn number(&mut self, start: usize) -> Kind {
        let mut at = start;
        let mut points = 0;
        loop {
            match self.byte(at) {
                b'0'..=b'9' => at += 1,
                // `1..2` is two numbers' worth of tokens to the server.
                b'.' if points == 0 && self.byte(at + 1) != b'.' => {
                    points = 1;
                    at += 1;
                }
                _ => break,
            }
        }
        let mut kind = Kind::PlainNumber;
        // Exponents, radix prefixes, underscores and junk: all of it belongs to no plain number.
        while is_name_start(self.byte(at)) || self.byte(at).is_ascii_digit() || self.byte(at) == b'$' {
            kind = Kind::OtherNumber;
            at += 1;
        }
        self.at = at.max(start + 1);
        kind
    }

    fn word(&mut self, start: usize) -> Result<Kind, LexError> {
        let (first, second, third) = (self.byte(start), self.byte(start + 1), self.byte(start + 2));
        match (first, second, third) {
            (b'e' | b'E', b'\'', _) => return self.string(start + 2, true),
            (b'b' | b'B' | b'x' | b'X' | b'n' | b'N', b'\'', _) => {
                return self.string(start + 2, false).map(|_| Kind::OtherString);
            }
            (b'u' | b'U', b'&', b'\'') => return self.string(start + 3, false).map(|_| Kind::OtherString),
            (b'u' | b'U', b'&', b'"') => return self.quoted_name(start + 3),
            _ => {}
        }
        let mut at = start;
        let mut ascii = true;
        loop {
            match self.byte(at) {
                b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'0'..=b'9' | b'$' => {}
                0x80.. => ascii = false,
                _ => break,
            }
            at += 1;
        }
        self.at = at;
        Ok(if ascii { Kind::Word } else { Kind::ForeignWord })
    }

    fn operator(&mut self, start: usize) -> Kind {
        let mut at = start;
        while is_operator(self.byte(at)) {
            // A comment ends an operator.
            if matches!((self.byte(at), self.byte(at + 1)), (b'-', b'-') | (b'/', b'*')) {
                break;
            }
            at += 1;
        }
        self.at = at.max(start + 1);
        Kind::Operator
    }
}

impl Iterator for Lexer<'_> {
    type Item = Result<Token, LexError>;

    fn next(&mut self) -> Option<Self::Item> {
        let token = self.token().transpose();
        if let Some(Err(_)) = token {
            self.at = self.text.len();
        }
        token
    }
}

const fn is_name_start(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..)
}

const fn is_operator(byte: u8) -> bool {
    matches!(
        byte,
        b'~' | b'!'
            | b'@'
            | b'#'
            | b'^'
            | b'&'
            | b'|'
            | b'`'
            | b'?'
            | b'+'
            | b'-'
            | b'*'
            | b'/'
            | b'%'
            | b'<'
            | b'>'
            | b'='
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<&str> {
        Lexer::new(text).map(|t| &text[t.unwrap().range()]).collect()
    }

    #[test]
    fn tokens_end_where_the_server_ends_them() {
        for (text, want) in [
            ("a+b", &["a", "+", "b"][..]),
            ("'a''b'c", &["'a''b'", "c"]),
            (r"'\' x", &[r"'\'", "x"]),
            (r"E'\'' x", &[r"E'\''", "x"]),
            ("E'a'\n'\\'b' x", &["E'a'\n'\\'b'", "x"]),
            ("'a' -- c\n 'b' x", &["'a' -- c\n 'b'", "x"]),
            ("'a' 'b'", &["'a'", "'b'"]),
            ("$a$ ' $b$ $a$, ssn", &["$a$ ' $b$ $a$", ",", "ssn"]),
            ("x$$ y$$", &["x$$", "y$$"]),
            ("$1+$2", &["$1", "+", "$2"]),
            ("a /* x /* y */ z */ b", &["a", "b"]),
            ("a --x\rb", &["a", "b"]),
            ("a*/b", &["a", "*/", "b"]),
            ("a+--c\nb", &["a", "+", "b"]),
            ("U&\"x\"\"y\" u&'z'", &["U&\"x\"\"y\"", "u&'z'"]),
            ("1.5e3 0x1F 1_000 .5 1..2", &["1.5e3", "0x1F", "1_000", ".5", "1", ".", ".2"]),
            ("x::int[1]", &["x", "::", "int", "[", "1", "]"]),
            ("größe.ß", &["größe", ".", "ß"]),
        ] {
            assert_eq!(tokens(text), want, "{text}");
        }
    }

    #[test]
    fn what_has_no_end_is_an_error() {
        for text in ["'a", "E'a\\'", "\"a", "$a$ x $b$", "/* /* */", "a /*"] {
            assert!(Lexer::new(text).any(|t| t == Err(LexError::Unterminated)), "{text}");
        }
        let nested = "/*".repeat(MAX_COMMENT_DEPTH + 1);
        assert!(Lexer::new(&nested).any(|t| t == Err(LexError::CommentDepth)));
        let deepest = format!("{}{} a", "/*".repeat(MAX_COMMENT_DEPTH), "*/".repeat(MAX_COMMENT_DEPTH));
        assert_eq!(tokens(&deepest), ["a"]);
    }

    #[test]
    fn tokens_stand_where_the_parsers_own_scanner_puts_them() {
        let corpora = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/corpora/postgres");
        let mut compared = 0;
        for file in ["benign.jsonl", "attacks.jsonl"] {
            for line in std::fs::read_to_string(format!("{corpora}/{file}")).unwrap().lines() {
                let case: serde_json::Value = serde_json::from_str(line).unwrap();
                let messages = case["messages"].as_array().into_iter().flatten().chain([&case]);
                for text in messages.filter_map(|message| message["sql"].as_str()) {
                    let Ok(scan) = pg_query::scan(text) else { continue };
                    let comments = [pg_query::protobuf::Token::SqlComment, pg_query::protobuf::Token::CComment];
                    let theirs: Vec<(usize, usize)> = (scan.tokens.iter())
                        .filter(|token| !comments.iter().any(|comment| i32::from(*comment) == token.token))
                        .map(|token| (token.start.try_into().unwrap(), token.end.try_into().unwrap()))
                        .collect();
                    for token in Lexer::new(text).map(Result::unwrap) {
                        // Runs of operator characters may be several of theirs, and `U&"…"` is two.
                        let begins = theirs.iter().any(|(start, _)| *start == token.start);
                        let ends = theirs.iter().any(|(_, end)| *end == token.end);
                        assert!(begins && ends, "`{}` of {text}", &text[token.range()]);
                        compared += 1;
                    }
                }
            }
        }
        assert!(compared > 10_000, "{compared}");
    }

    impl PartialEq for Token {
        fn eq(&self, other: &Self) -> bool {
            (self.kind, self.start, self.end) == (other.kind, other.start, other.end)
        }
    }
}
