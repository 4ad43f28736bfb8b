//! Host names of containers (docs/spec/containers.md A.6).

use regex_lite::Regex;

use crate::Error;
use crate::json::Object;

/// How the host name of a container follows from its name or from a label.
#[derive(Clone, Debug)]
pub struct HostnameRule {
    label: Option<String>,
    pattern: Regex,
    replacement: String,
}

/// The regular expression cannot be used. The text is that of 2.8.1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Incorrect hostname match '{pattern}': {reason}")]
pub struct HostnameError {
    pattern: String,
    reason: String,
}

impl HostnameRule {
    /// All matches of `pattern` are replaced by `replacement`, in which `$1` and `${name}` stand for groups. With a label, its value
    /// takes the place of the container's name.
    ///
    /// # Errors
    /// `pattern` is not a regular expression.
    pub fn new(
        label: Option<String>,
        pattern: &str,
        replacement: &str,
    ) -> Result<HostnameRule, HostnameError> {
        let error =
            |e: regex_lite::Error| HostnameError { pattern: pattern.to_owned(), reason: e.to_string() };
        let pattern = Regex::new(pattern).map_err(error)?;
        Ok(HostnameRule { label, pattern, replacement: replacement.to_owned() })
    }

    /// The host name of a container that is created with this name; empty without a name. As in 2.8.1, the body gets `Labels` if a
    /// label is asked for.
    pub(crate) fn derive(&self, name: &str, container: &mut Object) -> Result<String, Error> {
        let mut name = name.to_owned();
        if let Some(label) = &self.label {
            let labels = container.object("Labels")?;
            let value = labels.string(label)?;
            container.set_object("Labels", &labels);
            if !value.is_empty() {
                name = value;
            }
        }
        Ok(self.apply(&name))
    }

    /// An empty name stays empty, unlike in 2.8.1, where it matched `(.*)`.
    fn apply(&self, name: &str) -> String {
        if name.is_empty() {
            return String::new();
        }
        self.pattern.replace_all(name, self.replacement.as_str()).into_owned()
    }
}

impl Default for HostnameRule {
    /// The host name is the container's name.
    fn default() -> HostnameRule {
        HostnameRule::new(None, "(.*)", "$1").unwrap_or_else(|e| unreachable!("{e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Vectors {
        vectors: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        r#match: String,
        replacement: String,
        name: String,
        result: String,
    }

    #[test]
    fn names_of_the_original() {
        let text = include_str!("../../../tests/vectors/containers/hostname_regexp.json");
        let vectors: Vectors = serde_json::from_str(text).expect("vectors");
        assert!(vectors.vectors.len() >= 8);
        for case in vectors.vectors {
            let rule = HostnameRule::new(None, &case.r#match, &case.replacement).expect("an expression");
            let expected = if case.name.is_empty() { "" } else { &case.result };
            assert_eq!(rule.apply(&case.name), expected, "{} {}", case.r#match, case.name);
        }
    }

    #[test]
    fn syntax_of_expressions() {
        let error = HostnameRule::new(None, "a(b", "$1").map_err(|e| e.to_string()).unwrap_err();
        assert!(error.starts_with("Incorrect hostname match 'a(b': "), "{error}");
        // RE2's classes are those of ASCII.
        let rule = HostnameRule::new(None, r"^\w+-(?P<app>[[:alnum:]]+)-(?i:X)$", "${app}-$$")
            .expect("an expression");
        assert_eq!(rule.apply("1-web-x"), "web-$");
        assert_eq!(rule.apply("é-web-x"), "é-web-x");
    }
}
