//! Go's `text/template` over a report, for `weave report -f` (docs/spec/cli.md 9).
//!
//! Fields, `len`, `index`, `json`, `print`, `printf`, `println`, comparison and logic, `if`, `with`, `range`, variables,
//! pipelines, comments and trim markers, with Go's way of printing values. Not there: `define`, `template`, `block`,
//! `call`, `slice`, `html`, `js`, `urlquery`.

mod error;
mod exec;
mod lex;
mod parse;
mod print;
mod value;

pub use error::{ParseError, RenderError};

use crate::Report;

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    nodes: Vec<parse::Node>,
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// See [`ParseError`].
    pub fn parse(text: &str) -> Result<Template, ParseError> {
        Ok(Template { nodes: parse::parse(text)? })
    }

    /// Evaluates the template over `report`.
    ///
    /// # Errors
    /// If a field does not exist, or a function does not accept its arguments.
    pub fn render(&self, report: &Report) -> Result<String, RenderError> {
        exec::render(&self.nodes, &value::of(report))
    }
}
