//! The live picture: a page that draws the views of the network. Its files are parts of the program.

use hyper::StatusCode;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY};

use super::response::{Answer, respond, uncached};

/// Nothing is loaded from elsewhere, no script or style in the page itself is used, and no other page may contain this one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

#[derive(Debug)]
pub(super) struct File {
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

static FILES: [File; 3] = [
    File { path: "/picture", content_type: "text/html; charset=utf-8", text: include_str!("picture.html") },
    File { path: "/picture.css", content_type: "text/css; charset=utf-8", text: include_str!("picture.css") },
    File {
        path: "/picture.js",
        content_type: "text/javascript; charset=utf-8",
        text: include_str!("picture.js"),
    },
];

pub(super) fn find(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

pub(super) fn answer(file: &File) -> Answer {
    let mut answer = uncached(respond(StatusCode::OK, Some(file.content_type), file.text.to_owned()));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}
