//! Where texts have secrets: options, variables, JSON and URLs.

/// Words before a value that is a secret.
const WORDS: [&str; 4] = ["password", "passwd", "secret", "token"];

/// The value of a secret: bytes of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marked {
    pub(super) start: usize,
    pub(super) end: usize,
}

/// All values in a text that are marked as secrets, with and without their quotes, and the first word of each: whether an option that
/// begins in a quoted string ends with it is not known.
pub(in super::super) fn marked_values(text: &str) -> impl Iterator<Item = String> {
    let starts = text.char_indices().map(|(at, _)| at);
    let values = starts.filter_map(|at| marked_value(text, at)).map(|value| &text[value.start..value.end]);
    let first_word = |value: &str| value.split_whitespace().next().unwrap_or_default().to_owned();
    values
        .flat_map(move |value| [value.to_owned(), unquoted(value), first_word(value)])
        .filter(|value| !value.is_empty())
}

/// The first value that a word at `from` or behind it marks.
pub(super) fn next_marked_value(text: &str, from: usize) -> Option<Marked> {
    text[from..].char_indices().find_map(|(offset, _)| marked_value(text, from + offset))
}

/// The value that the word at `at` marks, if it is such a word.
fn marked_value(text: &str, at: usize) -> Option<Marked> {
    let rest = &text[at..];
    if let Some(authority) = rest.strip_prefix("://") {
        let length =
            authority.find(|c: char| c.is_whitespace() || "/\"'?#<>".contains(c)).unwrap_or(authority.len());
        let start = at + "://".len();
        return Some(Marked { start, end: start + authority[..length].rfind('@')? });
    }
    let matches = |word: &&&str| rest.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    let word = WORDS.iter().find(matches)?;
    let name_start = text[..at].rfind(|c: char| !(c.is_ascii_alphanumeric() || "_-".contains(c)));
    let name = name_start.map_or(&text[..at], |before| &text[before + char_len(text, before)..at]);
    let quote = text[..at - name.len()].chars().next_back().filter(|c| matches!(c, '"' | '\''));
    let after = &rest[word.len()..];
    let separator = after.chars().next()?;
    let start = if separator == '=' {
        1
    } else if let Some(start) = json_value(after) {
        let end = closing(&after[start..], '"');
        return Some(Marked { start: at + word.len() + start, end: at + word.len() + start + end });
    } else if name.starts_with('-') {
        // `--password x`, and `"--password", "x"` in a list.
        let separators = after.len() - after.trim_start_matches(|c: char| "\"' ,\t".contains(c)).len();
        if separators == 0 {
            return None;
        }
        let start = at + word.len() + separators;
        if let Some(quote) = after[..separators].chars().next_back().filter(|c| matches!(c, '"' | '\'')) {
            return Some(Marked { start, end: start + closing(&text[start..], quote) });
        }
        separators
    } else {
        return None;
    };
    let start = at + word.len() + start;
    let value = &text[start..];
    let end = match quote {
        Some(quote) if separator == '=' => closing(value, quote),
        Some(quote) => shell_word(&value[..closing(value, quote)]),
        None => shell_word(value),
    };
    Some(Marked { start, end: start + end })
}

fn char_len(text: &str, at: usize) -> usize {
    text[at..].chars().next().map_or(0, char::len_utf8)
}

/// Where the value of a JSON key begins, if the rest of the key's string and the beginning of a string follow.
fn json_value(after: &str) -> Option<usize> {
    let rest = after.strip_prefix('"')?.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    Some(after.len() - rest.len())
}

/// Bytes before the quote that closes a string, or before the end of the line.
fn closing(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            '\n' => return at,
            _ if escaped => escaped = false,
            '\\' if quote == '"' => escaped = true,
            c if c == quote => return at,
            _ => {}
        }
    }
    text.len()
}

/// Bytes of a word as a shell reads it, with its quotes.
fn shell_word(text: &str) -> usize {
    let (mut escaped, mut quote) = (false, None);
    for (at, c) in text.char_indices() {
        match (c, quote) {
            ('\n', _) => return at,
            _ if escaped => escaped = false,
            ('\\', None | Some('"')) => escaped = true,
            (c, Some(open)) if c == open => quote = None,
            (_, Some(_)) => {}
            ('"' | '\'', None) => quote = Some(c),
            (c, None) if c.is_whitespace() => return at,
            _ => {}
        }
    }
    text.len()
}

/// A shell's word without its quotes and escapes.
fn unquoted(word: &str) -> String {
    let (mut out, mut quote, mut chars) = (String::new(), None, word.chars());
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => out.extend(chars.next()),
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => quote = Some(c),
            (c, _) => out.push(c),
        }
    }
    out
}

/// A secret as it is, in JSON, and in a unit of systemd.
pub(super) fn spellings(secret: &str) -> [String; 3] {
    let json = serde_json::Value::from(secret).to_string();
    let escaped = json.trim_start_matches('"').strip_suffix('"').unwrap_or(secret).to_owned();
    let unit = secret.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    [secret.to_owned(), escaped, unit]
}
