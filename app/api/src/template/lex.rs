//! Splits a template into text and actions, and actions into tokens.

use super::error::ParseError;

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    Text(String),
    /// The tokens between `{{` and `}}`, and the line in which it begins.
    Action(Vec<Token>, usize),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// `.Name`; a lone dot has the empty name. The flag says whether a blank precedes it.
    Field(String, bool),
    /// `$name`.
    Variable(String),
    Word(String),
    Text(String),
    Int(i128),
    Float(f64),
    Pipe,
    Comma,
    Declare,
    Assign,
    Open,
    Close,
}

const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

fn line_of(text: &str, rest: &str) -> usize {
    text[..text.len() - rest.len()].matches('\n').count() + 1
}

/// Splits a template into text and actions; trim markers and comments are removed.
pub(super) fn pieces(text: &str) -> Result<Vec<Piece>, ParseError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim = false;
    while !rest.is_empty() {
        let (before, action) = match rest.find("{{") {
            Some(at) => (&rest[..at], Some(&rest[at + 2..])),
            None => (rest, None),
        };
        let mut before = if trim { before.trim_start_matches(SPACE) } else { before };
        trim = false;
        let Some(mut body) = action else {
            pieces.push(Piece::Text(before.to_owned()));
            break;
        };
        let line = line_of(text, body);
        let fail = |what: &str| ParseError { line, what: what.to_owned() };
        if body.starts_with('-') && body[1..].starts_with(SPACE) {
            before = before.trim_end_matches(SPACE);
            body = &body[1..];
        }
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        let trimmed = body.trim_start_matches(SPACE);
        if let Some(comment) = trimmed.strip_prefix("/*") {
            let end = comment.find("*/").ok_or_else(|| fail("unclosed comment"))?;
            rest = &comment[end + 2..];
            let tail = rest.trim_start_matches(SPACE);
            if let Some(after) = tail.strip_prefix("-}}") {
                (rest, trim) = (after, true);
            } else {
                rest =
                    rest.strip_prefix("}}").ok_or_else(|| fail("comment ends before closing delimiter"))?;
            }
            continue;
        }
        let (tokens, after, trims) = action_tokens(body, line)?;
        pieces.push(Piece::Action(tokens, line));
        (rest, trim) = (after, trims);
    }
    Ok(pieces)
}

/// Tokens up to `}}`, the rest, and whether the rest is trimmed.
fn action_tokens(body: &str, line: usize) -> Result<(Vec<Token>, &str, bool), ParseError> {
    let fail = |what: String| ParseError { line, what };
    let mut tokens = Vec::new();
    let mut rest = body;
    let mut depth = 0usize;
    loop {
        let spaced = rest.starts_with(SPACE);
        rest = rest.trim_start_matches(SPACE);
        if spaced && rest.starts_with("-}}") {
            return closed(tokens, &rest[3..], true, depth, line);
        }
        if let Some(after) = rest.strip_prefix("}}") {
            return closed(tokens, after, false, depth, line);
        }
        let Some(first) = rest.chars().next() else {
            return Err(fail("unclosed action".to_owned()));
        };
        let word = |from: &str| -> usize {
            from.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(from.len())
        };
        match first {
            '|' => tokens.push(Token::Pipe),
            ',' => tokens.push(Token::Comma),
            '=' => tokens.push(Token::Assign),
            '(' => {
                depth += 1;
                tokens.push(Token::Open);
            }
            ')' => {
                depth = depth.checked_sub(1).ok_or_else(|| fail("unexpected right paren".to_owned()))?;
                tokens.push(Token::Close);
            }
            ':' if rest.starts_with(":=") => {
                tokens.push(Token::Declare);
                rest = &rest[2..];
                continue;
            }
            ':' => return Err(fail("expected :=".to_owned())),
            '"' | '`' | '\'' => {
                let (token, after) = quoted(rest, first).map_err(|what| fail(what.to_owned()))?;
                tokens.push(token);
                rest = after;
                continue;
            }
            '.' if !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                let end = word(&rest[1..]) + 1;
                tokens.push(Token::Field(rest[1..end].to_owned(), spaced || tokens.is_empty()));
                rest = &rest[end..];
                continue;
            }
            '$' => {
                let end = word(&rest[1..]) + 1;
                tokens.push(Token::Variable(rest[1..end].to_owned()));
                rest = &rest[end..];
                continue;
            }
            c if c.is_ascii_digit() || "+-.".contains(c) => {
                let number = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
                let end = rest.find(|c| !number(c)).unwrap_or(rest.len());
                let text = &rest[..end];
                tokens.push(parse_number(text).ok_or_else(|| fail(format!("bad number syntax: {text:?}")))?);
                rest = &rest[end..];
                continue;
            }
            c if c.is_alphabetic() || c == '_' => {
                let end = word(rest);
                tokens.push(Token::Word(rest[..end].to_owned()));
                rest = &rest[end..];
                continue;
            }
            c => return Err(fail(format!("unexpected {:?} in command", c.to_string()))),
        }
        rest = &rest[first.len_utf8()..];
    }
}

fn closed(
    tokens: Vec<Token>,
    after: &str,
    trim: bool,
    depth: usize,
    line: usize,
) -> Result<(Vec<Token>, &str, bool), ParseError> {
    if depth > 0 {
        return Err(ParseError { line, what: "unclosed left paren".to_owned() });
    }
    Ok((tokens, after, trim))
}

fn parse_number(text: &str) -> Option<Token> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let plain = digits.replace('_', "");
    let lower = plain.to_ascii_lowercase();
    let integer = if let Some(hex) = lower.strip_prefix("0x") {
        i128::from_str_radix(hex, 16).ok()
    } else if lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|b| b.is_ascii_digit()) {
        i128::from_str_radix(&lower, 8).ok()
    } else if lower.bytes().all(|b| b.is_ascii_digit()) {
        lower.parse().ok()
    } else {
        None
    };
    if let Some(n) = integer.filter(|n| *n <= i128::from(u64::MAX)) {
        return Some(Token::Int(sign * n));
    }
    let float_like = lower.bytes().all(|b| b.is_ascii_digit() || b"+-.e".contains(&b));
    let x: f64 = float_like.then(|| plain.parse().ok()).flatten()?;
    Some(Token::Float(if sign < 0 { -x } else { x }))
}

/// A quoted string, raw string or character, and the rest.
fn quoted(rest: &str, quote: char) -> Result<(Token, &str), &'static str> {
    let unterminated = match quote {
        '`' => "unterminated raw quoted string",
        '"' => "unterminated quoted string",
        _ => "unterminated character constant",
    };
    if quote == '`' {
        let end = rest[1..].find('`').ok_or(unterminated)? + 1;
        return Ok((Token::Text(rest[1..end].to_owned()), &rest[end + 1..]));
    }
    let mut out = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\n' => return Err(unterminated),
            c if c == quote => {
                let token = match quote {
                    '"' => Token::Text(out),
                    _ => {
                        let mut one = out.chars();
                        match (one.next(), one.next()) {
                            (Some(c), None) => Token::Int(i128::from(u32::from(c))),
                            _ => return Err("malformed character constant"),
                        }
                    }
                };
                return Ok((token, &rest[at + 1..]));
            }
            '\\' => {
                let (_, escape) = chars.next().ok_or(unterminated)?;
                let mut code = |digits: usize| -> Option<char> {
                    let mut n = 0;
                    for _ in 0..digits {
                        n = n * 16 + chars.next()?.1.to_digit(16)?;
                    }
                    char::from_u32(n)
                };
                out.push(match escape {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'a' => '\x07',
                    'b' => '\x08',
                    'f' => '\x0c',
                    'v' => '\x0b',
                    '\\' | '"' | '\'' => escape,
                    'x' => code(2).ok_or("invalid syntax")?,
                    'u' => code(4).ok_or("invalid syntax")?,
                    'U' => code(8).ok_or("invalid syntax")?,
                    _ => return Err("invalid syntax"),
                });
            }
            c => out.push(c),
        }
    }
    Err(unterminated)
}
