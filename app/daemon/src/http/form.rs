//! Request bodies and query strings.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::StatusCode;
use hyper::body::Incoming;

use super::response::{Answer, error};

/// Largest request body; the longest list of peers is far below.
const MAX_BODY: usize = 1 << 20;

/// Reads the body of a request; the error is the answer to send.
pub(crate) async fn read_body(body: Incoming, timeout: Duration) -> Result<String, Answer> {
    match tokio::time::timeout(timeout, Limited::new(body, MAX_BODY).collect()).await {
        Err(_) => Err(error(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")),
        Ok(Err(_)) => Err(error(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large")),
        Ok(Ok(body)) => Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned()),
    }
}

/// Parses `application/x-www-form-urlencoded`. Invalid escapes are kept as they are.
pub(super) fn parse_form(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

pub(super) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        match (b, digits.and_then(|d| std::str::from_utf8(d).ok())) {
            (b'+', _) => out.push(b' '),
            (b'%', Some(digits)) => {
                out.push(u8::from_str_radix(digits, 16).unwrap_or(b'%'));
                at += 2;
            }
            _ => out.push(b),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_decoding_keeps_invalid_escapes() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(
            parse_form("peer=h1%3A6783&peer=h+2&replace=true&x&=&%zz=%4"),
            [
                pair("peer", "h1:6783"),
                pair("peer", "h 2"),
                pair("replace", "true"),
                pair("x", ""),
                pair("", ""),
                pair("%zz", "%4")
            ]
        );
        assert_eq!(parse_form(""), []);
    }
}
