//! Jinja as Hugging Face transformers sets it up: the environment that chat templates are written for.
//!
//! jinja2's whitespace rules (`trim_blocks`, `lstrip_blocks`), loop controls, Python's string methods, `tojson` as
//! Python's `json.dumps` writes it, `raise_exception`, and `{% generation %}` blocks, which only mark the
//! assistant's text.

use minijinja::value::from_args;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value, syntax::SyntaxConfig};

use super::guard::is_sentinel;
use super::python::{python_str, tojson};

/// Steps that a template may take: a bound against templates that never end.
const FUEL: u64 = 10_000_000;

/// The environment, without templates.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, _, value| out.write_str(&python_str(value)).map_err(Error::from));
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| python_str(value));
    environment
        .add_filter("trim", |text: &str, chars: Option<&str>| strip(text, chars, true, true).to_owned());
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
    });
    environment
}

/// What a template says by `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// The message of a failed template: its own, if it raised one.
pub(super) fn message(error: &Error) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return format!("the chat template refuses these messages: {message}");
        }
        cause = current.source();
    }
    format!("the chat template failed: {error}")
}

/// Writes `{% generation %}` and `{% endgeneration %}` as a block that does nothing.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start..].find("%}").map(|length| start + length) else { break };
        let inside = &rest[start + 2..end];
        let word = inside.trim_matches(['-', '+', ' ', '\t', '\r', '\n']);
        out.push_str(&rest[..start + 2]);
        match word {
            "generation" => out.push_str(&inside.replace(word, "if true")),
            "endgeneration" => out.push_str(&inside.replace(word, "endif")),
            _ => out.push_str(inside),
        }
        rest = &rest[end..];
    }
    out + rest
}

/// Python's methods on strings, lists and dictionaries. Those that look at a string's edges do not see the
/// sentinels there that guard a message's markers.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match name {
            "strip" | "lstrip" | "rstrip" => {
                let (chars,): (Option<&str>,) = from_args(args)?;
                return Ok(strip(text, chars, name != "rstrip", name != "lstrip").into());
            }
            "startswith" | "endswith" if text.contains(is_sentinel) => {
                let bare = Value::from(text.replace(is_sentinel, ""));
                return minijinja_contrib::pycompat::unknown_method_callback(state, &bare, name, args);
            }
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(text.strip_prefix(prefix).unwrap_or(text).into());
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(text.strip_suffix(suffix).unwrap_or(text).into());
            }
            "rsplit" => {
                let (separator, most): (&str, Option<usize>) = from_args(args)?;
                let most = most.unwrap_or(usize::MAX - 1);
                let mut parts: Vec<&str> = text.rsplitn(most + 1, separator).collect();
                parts.reverse();
                return Ok(parts.into_iter().map(Value::from).collect());
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// `str.strip` and its halves, which look past sentinels: of these only the one nearest to the text that remains
/// is kept, for it may guard a marker there.
fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let strips = |c: char| {
        is_sentinel(c)
            || match chars {
                Some(chars) => chars.contains(c),
                // Python's whitespace has four separators more than Unicode's.
                None => c.is_whitespace() || matches!(c, '\u{1C}'..='\u{1F}'),
            }
    };
    let (mut start, mut end) = (0, text.len());
    if left {
        start = end - text.trim_start_matches(strips).len();
        if start == end {
            return "";
        }
        start -= text[..start].chars().next_back().filter(|&c| is_sentinel(c)).map_or(0, char::len_utf8);
    }
    if right {
        end = text.trim_end_matches(strips).len();
        if end == 0 {
            return "";
        }
        end += text[end..].chars().next().filter(|&c| is_sentinel(c)).map_or(0, char::len_utf8);
    }
    &text[start..end]
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    fn render(source: &str) -> String {
        let source = without_generation_tags(source);
        environment().render_str(&source, context! { nothing => (), s => " a,b,,c " }).unwrap()
    }

    #[test]
    fn python_s_string_methods_work() {
        assert_eq!(render("{{ s.strip() }}|{{ s.lstrip() }}|{{ s.rstrip() }}"), "a,b,,c|a,b,,c | a,b,,c");
        assert_eq!(render("{{ 'xxaxbxx'.strip('x') }} {{ 'a\u{1f}'.strip() }}|"), "axb a|");
        assert_eq!(render("{{ s.split(',') }} {{ 'a b'.split() }}"), "[' a', 'b', '', 'c '] ['a', 'b']");
        assert_eq!(
            render("{{ 'a-b-c'.rsplit('-', 1) }} {{ 'a-b-c'.split('-', 1) }}"),
            "['a-b', 'c'] ['a', 'b-c']"
        );
        assert_eq!(render("{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('c') }}"), "bcab");
        assert_eq!(render("{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'bc')) }}"), "True True");
        assert_eq!(render("{{ 'abc'[::-1] }} {{ 'abc'[-2:] }} {{ [1, 2, 3][::-1] }}"), "cba bc [3, 2, 1]");
    }

    #[test]
    fn stripping_looks_past_sentinels_and_keeps_the_one_beside_the_text() {
        assert_eq!(strip("\u{FDD1}\n a\n\u{FDD0}", None, true, true), "a");
        assert_eq!(strip("\n\u{FDD0}<think>\u{FDD1}\n", None, true, true), "\u{FDD0}<think>\u{FDD1}");
        assert_eq!(strip("\u{FDD1}\n\u{FDD0}", Some("\n"), true, true), "");
        assert_eq!(strip("\u{FDD1}\n\u{FDD0}", Some("\n"), false, true), "");
        let state = "{{ '\u{FDD0}<think>\u{FDD1}\n'.startswith('<think>\n') }}";
        assert_eq!(environment().render_str(state, ()).unwrap(), "True");
    }

    #[test]
    fn values_print_as_python_prints_them() {
        assert_eq!(render("{{ none }} {{ true }} {{ 1.0 }} {{ missing }}|"), "None True 1.0 |");
        assert_eq!(
            render("{{ [none, 'it\\'s', 2.5, {'a': false}] }}"),
            "[None, \"it's\", 2.5, {'a': False}]"
        );
    }

    #[test]
    fn what_is_undefined_is_false_and_prints_nothing() {
        assert_eq!(
            render("{{ missing }}{% if not missing %}no{% endif %}{{ missing is defined }}"),
            "noFalse"
        );
        assert!(environment().render_str("{{ missing.attribute }}", ()).is_err());
    }

    #[test]
    fn loops_can_be_left_and_macros_and_namespaces_work() {
        let source = "{% macro m(x, y=2) %}({{ x }},{{ y }}){% endmacro %}{% set ns = namespace(n=0) %}
{% for i in range(9) %}
    {% if i == 1 %}{% continue %}{% endif %}
    {% if i == 4 %}{% break %}{% endif %}
    {% set ns.n = ns.n + i %}
{{ m(i) }}{% endfor %}={{ ns.n }}{% for k, v in {'a': 1}|items %}{{ k }}{{ v }}{% endfor %}";
        assert_eq!(render(source).split_whitespace().collect::<String>(), "(0,2)(2,2)(3,2)=5a1");
    }

    #[test]
    fn generation_blocks_only_mark_their_text() {
        let source = "a\n{%- generation %}\nb{% endgeneration -%}\n c {{ '{% raw' }}";
        assert_eq!(render(source), "abc {% raw");
    }

    #[test]
    fn an_endless_template_is_stopped() {
        let source = "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}";
        assert_eq!(environment().render_str(source, ()).unwrap_err().kind(), ErrorKind::OutOfFuel);
    }
}
