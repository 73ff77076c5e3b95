//! Values as Python writes them: `json.dumps`, `str` and `repr`.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::guard::is_sentinel;

/// The filter `tojson`: `json.dumps(value, ensure_ascii, indent, separators, sort_keys)`, by transformers'
/// defaults not limited to ASCII, and nothing escaped for HTML.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none()) {
        None => None,
        Some(text) if text.as_str().is_some() => Some(text.to_string()),
        Some(width) => Some(" ".repeat(usize::try_from(width)?.min(64))),
    };
    let separators = match options.get::<Option<Value>>("separators")?.filter(|pair| !pair.is_none()) {
        Some(pair) => (pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let mut json = Json {
        out: String::new(),
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        separators,
        depth: 0,
    };
    options.assert_all_used()?;
    json.value(value)?;
    Ok(json.out)
}

struct Json {
    out: String,
    ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    /// Between items, and between key and value.
    separators: (String, String),
    depth: usize,
}

impl Json {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value, ["NaN", "Infinity", "-Infinity"])),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut keys = value.try_iter()?.collect::<Vec<Value>>();
                if self.sort_keys {
                    keys.sort();
                }
                self.items(['{', '}'], keys, |json, key| {
                    json.key(&key)?;
                    json.out.push_str(&json.separators.1.clone());
                    json.value(&value.get_item(&key)?)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.collect::<Vec<Value>>();
                self.items(['[', ']'], items, |json, item| json.value(&item))?;
            }
            kind => {
                let what = format!("tojson: a value of type {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
        }
        Ok(())
    }

    fn items(
        &mut self,
        brackets: [char; 2],
        items: Vec<Value>,
        mut write: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(brackets[0]);
        self.depth += 1;
        let any = !items.is_empty();
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.separators.0.clone());
            }
            self.new_line();
            write(self, item)?;
        }
        self.depth -= 1;
        if any {
            self.new_line();
        }
        self.out.push(brackets[1]);
        Ok(())
    }

    fn new_line(&mut self) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(self.depth));
        }
    }

    /// Keys are strings; numbers, booleans and None become strings.
    fn key(&mut self, key: &Value) -> Result<(), Error> {
        if key.as_str().is_some() {
            return self.value(key);
        }
        self.out.push('"');
        self.value(key)?;
        self.out.push('"');
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{C}' => self.out.push_str("\\f"),
                // a sentinel is taken out again, which it could not be as an escape
                c if c < ' ' || (self.ascii && c > '~' && !is_sentinel(c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(self.out, "\\u{unit:04x}").expect("a string can be written to");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// What `{{ value }}` prints: Python's `str`; nothing for what is undefined.
pub(super) fn python_str(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        _ => python_repr(value),
    }
}

fn python_repr(value: &Value) -> String {
    let items = |open: &str, items: Vec<String>, close: &str| format!("{open}{}{close}", items.join(", "));
    match (value.kind(), value.try_iter()) {
        (ValueKind::Number, _) => number(value, ["nan", "inf", "-inf"]),
        (ValueKind::String, _) => quoted(value.as_str().unwrap_or_default()),
        (ValueKind::Map, Ok(keys)) => {
            let pair = |key: Value| {
                let value = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", python_repr(&key), python_repr(&value))
            };
            items("{", keys.map(pair).collect(), "}")
        }
        (ValueKind::Seq, Ok(values)) if value.is_tuple() => {
            let values: Vec<String> = values.map(|value| python_repr(&value)).collect();
            items("(", values.clone(), if values.len() == 1 { ",)" } else { ")" })
        }
        (ValueKind::Seq | ValueKind::Iterable, Ok(values)) => {
            items("[", values.map(|value| python_repr(&value)).collect(), "]")
        }
        _ => value.to_string(),
    }
}

/// A string literal: in single quotes, unless only double ones save escapes.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// A number; `special` are not-a-number, infinity and negative infinity.
fn number(value: &Value, special: [&str; 3]) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(float) if float.is_nan() => special[0].to_owned(),
        Ok(f64::INFINITY) => special[1].to_owned(),
        Ok(f64::NEG_INFINITY) => special[2].to_owned(),
        Ok(float) => python_float(float),
        Err(_) => value.to_string(),
    }
}

/// `repr` of a finite float: the shortest digits that read back the same, with an exponent below 1e-4 and from
/// 1e16.
fn python_float(float: f64) -> String {
    if float == 0.0 || (1e-4..1e16).contains(&float.abs()) {
        return format!("{float:?}");
    }
    let shortest = format!("{float:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use super::super::jinja::environment;

    fn render(source: &str) -> String {
        environment().render_str(source, ()).unwrap()
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        assert_eq!(
            render(r#"{{ {"a": [1, 2.0, none, true], "b": {}, "é<>&'": "\"\\\n\t\u0001🙂"} | tojson }}"#),
            r#"{"a": [1, 2.0, null, true], "b": {}, "é<>&'": "\"\\\n\t\u0001🙂"}"#
        );
        assert_eq!(render(r#"{{ "é🙂" | tojson(ensure_ascii=true) }}"#), r#""\u00e9\ud83d\ude42""#);
        let sentinel = "\"<\u{FDD0}\"";
        assert_eq!(render(&format!("{{{{ {sentinel} | tojson(ensure_ascii=true) }}}}")), sentinel);
        assert_eq!(
            render(r#"{{ [1, {"b": 2, "a": []}] | tojson(sort_keys=true) }}"#),
            r#"[1, {"a": [], "b": 2}]"#
        );
        assert_eq!(render(r#"{{ [1, {"b": 2}] | tojson(separators=(",", ":")) }}"#), r#"[1,{"b":2}]"#);
        assert_eq!(
            render(r#"{{ {"a": [1, {}], "b": []} | tojson(indent=2) }}"#),
            "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}"
        );
        assert_eq!(
            render("{{ {1.5: 2, none: 3, true: 4} | tojson }}"),
            r#"{"1.5": 2, "null": 3, "true": 4}"#
        );
    }

    #[test]
    fn floats_have_python_s_digits_and_exponents() {
        assert_eq!(
            render("{{ [1e16, 1e15, 0.0001, 0.00001, 1.5e-7, -0.0, 1e100] | tojson }}"),
            "[1e+16, 1000000000000000.0, 0.0001, 1e-05, 1.5e-07, -0.0, 1e+100]"
        );
    }

    #[test]
    fn what_is_undefined_cannot_be_written_as_json() {
        let error = environment().render_str("{{ missing | tojson }}", ()).unwrap_err();
        assert!(error.to_string().contains("not JSON serializable"), "{error}");
    }

    #[test]
    fn strings_inside_lists_are_quoted_as_python_quotes_them() {
        assert_eq!(
            render(r#"{{ ["a", "it's", "\"'", "\n", ("x",)] }}"#),
            r#"['a', "it's", '"\'', '\n', ('x',)]"#
        );
    }
}
