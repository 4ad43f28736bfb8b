//! Any text as a template, any bytes as a daemon's answer or report. Shared by the fuzz targets and the tests that replay
//! their corpora.

use std::sync::OnceLock;

use weave_api::template::Template;
use weave_api::{Report, parse_endpoint, status};

fn sample() -> &'static Report {
    static REPORT: OnceLock<Report> = OnceLock::new();
    REPORT.get_or_init(|| {
        let text = include_str!("../../../../tests/vectors/cli/one-peer-idle/report.json");
        Report::from_json(text).unwrap_or_else(|e| panic!("{e}"))
    })
}

/// Parses, and renders what could be parsed. Errors can be shown.
pub(crate) fn template(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Template::parse(&text) {
        Ok(template) => {
            if let Err(error) = template.render(sample()) {
                assert!(error.to_string().starts_with("template: format"), "{error}");
            }
        }
        Err(error) => assert!(error.to_string().starts_with("template: format:"), "{error}"),
    }
}

/// Any bytes as the report of whatever answers on the daemon's address.
pub(crate) fn answer(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(report) = Report::from_json(&text) {
        report.to_json();
        for page in
            [status::summary, status::targets, status::connections, status::peers, status::dns, status::ipam]
        {
            page(&report);
        }
    }
    // The daemon's address as a user may write it.
    assert!(!parse_endpoint(&text).to_string().is_empty());
}
