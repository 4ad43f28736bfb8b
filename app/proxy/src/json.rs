//! JSON objects of which a few fields are read and replaced. All other fields keep their text.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::Error;

/// A JSON object; the values are not parsed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object(BTreeMap<String, Box<RawValue>>);

impl Object {
    /// Parses the body of a message. `null` counts as an object without fields.
    pub(crate) fn parse(body: &[u8]) -> Result<Object, Error> {
        let raw: Box<RawValue> = serde_json::from_slice(body).map_err(|e| Error::Json(e.to_string()))?;
        Object::of("body", &raw)
    }

    fn of(field: &str, raw: &RawValue) -> Result<Object, Error> {
        let fields: Option<_> = read(field, "object", raw)?;
        Ok(Object(fields.unwrap_or_default()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        // Keys are text and the values are JSON already.
        serde_json::to_vec(&self.0).unwrap_or_default()
    }

    /// Whether the field exists and is not `null`.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.0.get(field).is_some_and(|raw| raw.get() != "null")
    }

    /// An absent field is an object without fields.
    pub(crate) fn object(&self, field: &str) -> Result<Object, Error> {
        self.0.get(field).map_or_else(|| Ok(Object::default()), |raw| Object::of(field, raw))
    }

    /// An absent field is an empty text.
    pub(crate) fn string(&self, field: &str) -> Result<String, Error> {
        let Some(raw) = self.0.get(field) else { return Ok(String::new()) };
        Ok(read::<Option<String>>(field, "string", raw)?.unwrap_or_default())
    }

    /// A list of texts, or a single text; an absent field is an empty list.
    pub(crate) fn strings(&self, field: &str) -> Result<Vec<String>, Error> {
        let Some(raw) = self.0.get(field) else { return Ok(Vec::new()) };
        if raw.get().starts_with('"') {
            return Ok(vec![self.string(field)?]);
        }
        Ok(read::<Option<Vec<String>>>(field, "string or array of strings", raw)?.unwrap_or_default())
    }

    pub(crate) fn set(&mut self, field: &str, value: &(impl Serialize + ?Sized)) {
        // Texts, lists and numbers are always JSON.
        if let Ok(raw) = serde_json::value::to_raw_value(value) {
            self.0.insert(field.to_owned(), raw);
        }
    }

    pub(crate) fn set_object(&mut self, field: &str, object: &Object) {
        self.set(field, &object.0);
    }
}

fn read<T: DeserializeOwned>(field: &str, expected: &'static str, raw: &RawValue) -> Result<T, Error> {
    let error = |_| Error::Type { field: field.to_owned(), expected, found: go_type(raw.get()) };
    serde_json::from_str(raw.get()).map_err(error)
}

/// What Go calls the type of a decoded value.
fn go_type(text: &str) -> &'static str {
    match text.as_bytes().first() {
        Some(b'{') => "map[string]interface {}",
        Some(b'[') => "[]interface {}",
        Some(b'"') => "string",
        Some(b't' | b'f') => "bool",
        Some(b'n') => "<nil>",
        _ => "json.Number",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unchanged_fields_keep_their_text() {
        let body = r#"{"a":1e3,"b":9223372036854775808,"c":{"x":0.1000,"y":[ 1, 2 ]},"d":"\u00e9"}"#;
        let mut object = Object::parse(body.as_bytes()).expect(body);
        object.set("d", "new");
        let text = String::from_utf8(object.to_bytes()).expect("text");
        assert_eq!(text, body.replace(r#""\u00e9""#, r#""new""#));
    }

    #[test]
    fn types_are_checked() {
        let object =
            Object::parse(br#"{"list":["a"],"one":"a","none":null,"number":1,"object":{}}"#).expect("object");
        assert_eq!(object.strings("list"), Ok(vec!["a".to_owned()]));
        assert_eq!(object.strings("one"), Ok(vec!["a".to_owned()]));
        assert_eq!(object.strings("none"), Ok(Vec::new()));
        assert_eq!(object.strings("absent"), Ok(Vec::new()));
        assert_eq!(object.string("none"), Ok(String::new()));
        assert!(object.object("none").is_ok_and(|none| none.is_empty()));
        let text = |e: Error| e.to_string();
        assert_eq!(
            object.strings("number").map_err(text).unwrap_err(),
            "Wrong type for number field, expected string or array of strings, but got json.Number"
        );
        assert_eq!(
            object.string("object").map_err(text).unwrap_err(),
            "Wrong type for object field, expected string, but got map[string]interface {}"
        );
        assert!(Object::parse(b"[1]").is_err_and(|e| e.status() == 400));
        assert!(Object::parse(b"").is_err() && Object::parse(b"{} x").is_err());
    }
}
