//! Errors: those of providers read, whatever their shape, and ours written.

use crate::refusal::Refused;
use serde::Serialize;
use serde_json::Value;

/// What a provider's error says. Nothing in it may go to a client or to the log unseen: it can quote the operator's
/// credentials, or the client's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamFault {
    /// For people.
    pub message: Option<String>,
    /// The class of the error.
    pub r#type: Option<String>,
    /// The key of the request at fault.
    pub param: Option<String>,
    /// The code; numbers as text.
    pub code: Option<String>,
}

impl UpstreamFault {
    /// Reads an error body or an error event: nested under `error`, flat, or in an array. Whatever cannot be read is `None`.
    pub fn parse(body: &[u8]) -> Self {
        let Ok(value) = serde_json::from_slice::<Value>(body) else { return UpstreamFault::default() };
        let outer = match &value {
            Value::Array(items) => items.first().unwrap_or(&Value::Null),
            Value::Object(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => &value,
        };
        let inner = match outer.get("error") {
            Some(Value::String(message)) => {
                return UpstreamFault { message: Some(message.clone()), ..UpstreamFault::default() };
            }
            Some(inner @ Value::Object(_)) => inner,
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_)) | None => outer,
        };
        let text = |key: &str| inner.get(key).and_then(plain);
        UpstreamFault {
            message: text("message").or_else(|| text("detail")),
            r#type: text("type").or_else(|| text("status")),
            param: text("param"),
            code: text("code"),
        }
    }
}

/// The text of a string or a number.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The body of a refusal: `error` with its four keys.
pub fn error_body(refused: &Refused) -> Vec<u8> {
    let wire = refused.kind.wire();
    error_object(&refused.public, wire.r#type, refused.param.as_deref(), wire.code)
}

/// An error with its four keys, as JSON.
pub fn error_object(message: &str, r#type: &str, param: Option<&str>, code: Option<&str>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        error: Fields<'a>,
    }
    #[derive(Serialize)]
    struct Fields<'a> {
        message: &'a str,
        r#type: &'a str,
        param: Option<&'a str>,
        code: Option<&'a str>,
    }
    super::to_json(&Body { error: Fields { message, r#type, param, code } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Kind;

    #[test]
    fn faults_are_read_in_every_shape() {
        let full = UpstreamFault {
            message: Some("m".to_owned()),
            r#type: Some("t".to_owned()),
            param: Some("p".to_owned()),
            code: Some("400".to_owned()),
        };
        let fields = r#""message":"m","type":"t","param":"p","code":400"#;
        for body in [
            format!(r#"{{"error":{{{fields}}}}}"#),
            format!(r#"[{{"error":{{{fields}}}}}]"#),
            format!(r#"{{"object":"error",{fields}}}"#),
            format!(r#"{{"error":null,{fields}}}"#),
        ] {
            assert_eq!(UpstreamFault::parse(body.as_bytes()), full, "{body}");
        }
        assert_eq!(UpstreamFault::parse(br#"{"error":"m"}"#).message, full.message);
        assert_eq!(UpstreamFault::parse(br#"{"detail":"m"}"#).message, full.message);
    }

    #[test]
    fn what_is_no_error_object_says_nothing() {
        for body in ["", "<html>", r#"{"error":{"mess"#, "[]", "null", "7", r#"{"error":{"message":{}}}"#] {
            assert_eq!(UpstreamFault::parse(body.as_bytes()), UpstreamFault::default(), "{body}");
        }
        assert_eq!(UpstreamFault::parse("[".repeat(100_000).as_bytes()), UpstreamFault::default());
    }

    #[test]
    fn a_refusal_has_all_four_keys() {
        let refused = Refused::new(Kind::InvalidValue, "say \"why\"").param("n").internal("secret");
        let want = r#"{"error":{"message":"say \"why\"","type":"invalid_request_error","param":"n","code":"invalid_value"}}"#;
        assert_eq!(String::from_utf8(error_body(&refused)).unwrap(), want);
        let refused = Refused::new(Kind::UpstreamRejected, "no");
        let want = r#"{"error":{"message":"no","type":"invalid_request_error","param":null,"code":null}}"#;
        assert_eq!(String::from_utf8(error_body(&refused)).unwrap(), want);
    }
}
