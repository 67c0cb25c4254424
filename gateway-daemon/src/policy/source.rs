//! Policy files as text: where one policy ends and the next begins, and places in them for people.

use std::{fmt, iter::Peekable, ops::Range, str::CharIndices, sync::Arc};

use unicode_width::UnicodeWidthStr;

/// Columns of a line that are shown; what is beyond is counted, not shown.
const MAX_EXCERPT_CHARS: usize = 160;

/// One policy file.
#[derive(Debug, Clone)]
pub struct Source {
    name: Arc<str>,
    text: Arc<str>,
    /// The offset at which each line begins, ascending; the first is 0.
    lines: Arc<[usize]>,
}

/// A place in a policy file, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file's name inside the folder.
    pub file: Arc<str>,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line, printable.
    excerpt: String,
    /// Columns before the marked part, and of it.
    indent: usize,
    marked: usize,
}

impl Source {
    /// A file of this name inside the folder, with what it holds.
    pub fn new(name: &str, text: &str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name: name.into(), text: text.into(), lines }
    }

    /// What the file holds.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The place of a range of bytes; what lies outside the text is moved to its end.
    pub(super) fn place(&self, range: Range<usize>) -> Place {
        let text = &*self.text;
        let start = floor_boundary(text, range.start);
        let line = self.lines.partition_point(|&line_start| line_start <= start);
        let line_start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or(0);
        let head = text.get(line_start..start).unwrap_or_default();
        let tail = text.get(start..).unwrap_or_default().split(['\n', '\r']).next().unwrap_or_default();
        let end = floor_boundary(tail, range.end.saturating_sub(start));
        let marked = tail.get(..end).unwrap_or_default();
        let shown_head = printable(head);
        Place {
            file: Arc::clone(&self.name),
            line,
            column: head.chars().count() + 1,
            indent: shown_head.width(),
            marked: printable(marked).width().max(1),
            excerpt: cut(&format!("{shown_head}{}", printable(tail))),
        }
    }
}

/// The byte ranges of the policies of a file, from the first token up to and with the `;`. Decides nothing: each range
/// is parsed by Cedar on its own, and must be one policy.
pub(super) fn pieces(text: &str) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let mut start = None;
    for (range, token) in Tokens::of(text) {
        match token {
            Token::Blank => {}
            Token::Word | Token::Text | Token::Sign(_) => {
                let from = *start.get_or_insert(range.start);
                if token == Token::Sign(';') {
                    pieces.push(from..range.end);
                    start = None;
                }
            }
        }
    }
    pieces.extend(start.map(|from| from..text.len()));
    pieces
}

/// What of a policy stands behind its scope: its `when` and `unless`, on one line and without comments.
pub(super) fn conditions(policy: &str) -> String {
    let mut tokens = Tokens::of(policy);
    // An annotation's parentheses come before the effect, and its name has a `@` in front.
    let mut before = Token::Blank;
    for (range, token) in tokens.by_ref() {
        let word = policy.get(range).unwrap_or_default();
        if token == Token::Word && before != Token::Sign('@') && matches!(word, "permit" | "forbid") {
            break;
        }
        before = token;
    }
    let _scope = tokens.by_ref().find(|(_, token)| *token == Token::Sign(')'));
    let mut shown = String::new();
    for (range, token) in tokens {
        match token {
            Token::Blank if shown.ends_with(' ') => {}
            Token::Blank => shown.push(' '),
            Token::Word | Token::Text | Token::Sign(_) => shown.push_str(policy.get(range).unwrap_or_default()),
        }
    }
    shown.trim().trim_end_matches(';').trim_end().to_owned()
}

/// What makes a policy dear to read: Cedar recurses into brackets and `if`s, an operator may stand on the one before,
/// and the validator's time doubles with each `if` inside another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Complexity {
    /// Brackets inside each other.
    pub(super) depth: usize,
    pub(super) ifs: usize,
    pub(super) operators: usize,
}

impl Complexity {
    pub(super) fn of(policy: &str) -> Self {
        let mut found = Self::default();
        let mut depth = 0_usize;
        for (range, token) in Tokens::of(policy) {
            match token {
                Token::Sign('(' | '[' | '{') => depth += 1,
                Token::Sign(')' | ']' | '}') => depth = depth.saturating_sub(1),
                Token::Sign('&' | '|' | '+' | '-' | '*' | '.' | '!' | '<' | '>' | '=') => found.operators += 1,
                Token::Word if policy.get(range) == Some("if") => found.ifs += 1,
                Token::Word | Token::Text | Token::Sign(_) | Token::Blank => {}
            }
            found.depth = found.depth.max(depth);
        }
        found
    }
}

/// What Cedar's lexer tells apart, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// White space or a `//` comment.
    Blank,
    /// Letters, digits and `_`.
    Word,
    /// A string with its quotes; without the last where the text ends in it.
    Text,
    /// Any other character.
    Sign(char),
}

/// Cuts a text as Cedar's lexer does: comments run to the end of the line, a backslash takes the next character along.
struct Tokens<'a> {
    chars: Peekable<CharIndices<'a>>,
    end: usize,
}

impl<'a> Tokens<'a> {
    fn of(text: &'a str) -> Self {
        Self { chars: text.char_indices().peekable(), end: text.len() }
    }

    fn skip_while(&mut self, fits: impl Fn(char) -> bool) {
        while self.chars.next_if(|&(_, next)| fits(next)).is_some() {}
    }

    fn skip_string(&mut self) {
        while let Some((_, character)) = self.chars.next() {
            match character {
                '"' => break,
                '\\' => {
                    self.chars.next();
                }
                _ => {}
            }
        }
    }
}

impl Iterator for Tokens<'_> {
    type Item = (Range<usize>, Token);

    fn next(&mut self) -> Option<Self::Item> {
        let is_word = |character: char| character.is_alphanumeric() || character == '_';
        let (start, first) = self.chars.next()?;
        let token = match first {
            '/' if self.chars.next_if(|&(_, next)| next == '/').is_some() => {
                self.skip_while(|next| next != '\n' && next != '\r');
                Token::Blank
            }
            '"' => {
                self.skip_string();
                Token::Text
            }
            space if space.is_whitespace() => {
                self.skip_while(char::is_whitespace);
                Token::Blank
            }
            word if is_word(word) => {
                self.skip_while(is_word);
                Token::Word
            }
            sign => Token::Sign(sign),
        };
        let end = self.chars.peek().map_or(self.end, |&(at, _)| at);
        Some((start..end, token))
    }
}

/// The text with what could deceive a reader made visible: control characters, and those that change direction or
/// have no width.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\t' => shown.push(' '),
            other if other.is_control() || is_invisible(other) => shown.extend(other.escape_unicode()),
            other => shown.push(other),
        }
    }
    shown
}

fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(MAX_EXCERPT_CHARS) {
        None => line.to_owned(),
        Some((at, _)) => {
            let (shown, rest) = line.split_at(at);
            format!("{shown}… ({} more characters)", rest.chars().count())
        }
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl fmt::Display for Place {
    /// The arrow, the line and the mark below it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, excerpt, indent, marked } = self;
        let number = line.to_string();
        let gutter = number.len();
        writeln!(f, "{:gutter$}--> {file}:{line}:{column}", "")?;
        writeln!(f, "{:gutter$} |", "")?;
        writeln!(f, "{number} | {excerpt}")?;
        let room = excerpt.width().saturating_sub(*indent).max(1);
        let marks = "^".repeat((*marked).min(room));
        write!(f, "{:gutter$} | {:indent$}{marks}", "", "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_up(text: &str) -> Vec<&str> {
        pieces(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn a_policy_ends_at_its_semicolon_and_not_at_one_in_a_string_or_a_comment() {
        let text = "// a; b\n@id(\"x;\\\"y;\") // c;\rpermit(principal, action, resource);\n\n permit ; // end";
        assert_eq!(cut_up(text), ["@id(\"x;\\\"y;\") // c;\rpermit(principal, action, resource);", "permit ;"]);
    }

    #[test]
    fn what_is_not_ended_is_a_piece_too() {
        assert_eq!(cut_up("permit(principal, action, resource)"), ["permit(principal, action, resource)"]);
        assert_eq!(cut_up("@id(\"x;"), ["@id(\"x;"]);
        assert_eq!(cut_up(" // nothing;"), [""; 0]);
    }

    #[test]
    fn pieces_are_what_cedar_reads_as_policies() {
        let text = include_str!("../../../policies/00-baseline.cedar");
        let whole: cedar_policy::PolicySet = text.parse().unwrap();
        let texts: Vec<_> = whole.policies().map(|policy| policy.to_cedar().unwrap()).collect();
        let mut cut_up = cut_up(text);
        let mut texts: Vec<_> = texts.iter().map(String::as_str).collect();
        cut_up.sort_unstable();
        texts.sort_unstable();
        assert_eq!(cut_up, texts);
    }

    #[test]
    fn conditions_are_what_stands_behind_the_scope() {
        let policy = "@id(\"a\") @description(\"permit ( x )\")\npermit(principal in Group::\"a/(\", action, resource)\n  \
                      when { resource.name == \"a  b;\" } // why\n  unless { context.allColumns };";
        assert_eq!(conditions(policy), "when { resource.name == \"a  b;\" } unless { context.allColumns }");
        assert_eq!(conditions("@id(\"a\") forbid(principal, action, resource);"), "");
    }

    #[test]
    fn complexity_counts_brackets_ifs_and_operators_outside_of_strings_and_comments() {
        let found = |policy| {
            let Complexity { depth, ifs, operators } = Complexity::of(policy);
            [depth, ifs, operators]
        };
        assert_eq!(found("permit(principal, action, resource) when { if (a) then [b] else c };"), [2, 1, 0]);
        assert_eq!(found("@id(\"((((&& if\") // (((( if\npermit(principal, action, resource);"), [1, 0, 0]);
        assert_eq!(found("when { a.b && c == d.iffy }"), [1, 0, 6]);
    }

    #[test]
    fn a_place_counts_characters_and_shows_what_would_deceive() {
        let source = Source::new("a.cedar", "one\n\tä\u{202e}x = y\n");
        let place = source.place(5..7);
        assert_eq!((place.line, place.column), (2, 2));
        insta::assert_snapshot!(place.to_string(), @r"
         --> a.cedar:2:2
          |
        2 |  ä\u{202e}x = y
          |  ^
        ");
        assert_eq!(source.place(500..900).line, 3);
    }
}
