//! Chat templates: messages to the text, and the token ids, of a prompt.

use jiff::civil::DateTime;
use minijinja::{Environment, ErrorKind, Value};

use super::from_json::{literal, optional_json};
use super::guard::{Author, Guard};
use super::jinja;
use super::tokenizer::Tokenizer;
use crate::checkpoint::Metadata;
use crate::{Error, Result};

/// A message as chat templates see it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TemplateMessage {
    /// `system`, `user`, `assistant`, `tool`
    pub role: String,
    /// The text.
    pub content: String,
    /// The thought before an assistant's answer, for templates that keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
}

/// What a template is rendered with beside the messages.
#[derive(Clone, Debug, Default)]
pub struct TemplateContext {
    /// Ends with the opening of an assistant's turn.
    pub add_generation_prompt: bool,
    /// `bos_token`
    pub bos_token: String,
    /// `eos_token`
    pub eos_token: String,
    /// Further variables (`enable_thinking`, `tools`, …).
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// The local time that `strftime_now` tells; `None`: the time of rendering.
    pub now: Option<DateTime>,
}

impl TemplateContext {
    /// With the tokenizer's `bos_token` and `eos_token`, and the opening of an assistant's turn at the end.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let literal = |id: Option<u32>| id.map(|id| tokenizer.decode(&[id])).unwrap_or_default();
        TemplateContext {
            add_generation_prompt: true,
            bos_token: literal(tokenizer.bos().map(|(id, _)| id)),
            eos_token: literal(tokenizer.ends().first().copied()),
            ..TemplateContext::default()
        }
    }
}

/// A compiled chat template (Jinja, as Hugging Face renders it).
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
}

/// What [`MISTRAL`] marks texts with.
const MISTRAL_TOKENS: [&str; 4] = ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"];

/// Of a system prompt `system`, which may be empty, and messages.
const MISTRAL: &str = "\
{{- bos_token -}}
{%- if system and messages[0].role != 'system' -%}
    {{- '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {{- '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' -}}
    {%- elif message.role == 'user' -%}
        {{- '[INST]' + message.content + '[/INST]' -}}
    {%- else -%}
        {{- message.content + eos_token -}}
    {%- endif -%}
{%- endfor -%}
";

/// The template's name in its environment and in messages about its syntax.
const NAME: &str = "chat template";

impl ChatTemplate {
    /// Compiles a template's source.
    ///
    /// # Errors
    /// A fault of syntax, with its line.
    pub fn new(source: &str) -> Result<Self> {
        let mut environment = jinja::environment();
        environment
            .add_template_owned(NAME, jinja::without_generation_tags(source))
            .map_err(|error| Error::Text(format!("the chat template cannot be compiled: {error}")))?;
        Ok(ChatTemplate { source: source.to_owned(), environment })
    }

    /// From a checkpoint: `tokenizer.chat_template`, chat_template.jinja or tokenizer_config.json; `None` if it has
    /// none.
    ///
    /// # Errors
    /// A file that cannot be read; a template that cannot be compiled.
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<Self>> {
        let source = match metadata {
            Metadata::Gguf(pairs) => match pairs.find::<&str>("tokenizer.chat_template")? {
                Some(source) => Some(source.to_owned()),
                None => pairs.find::<&str>("tokenizer.chat_template.default")?.map(str::to_owned),
            },
            Metadata::HuggingFace { folder, .. } => {
                let file = folder.join("chat_template.jinja");
                match std::fs::read_to_string(&file) {
                    Ok(source) => Some(source),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        configured(&optional_json(&folder.join("tokenizer_config.json"))?["chat_template"])
                    }
                    Err(source) => return Err(Error::io(&file, source)),
                }
            }
        };
        source.map(|source| ChatTemplate::new(&source)).transpose()
    }

    /// [`from_metadata`](Self::from_metadata), or, where a vocabulary has Mistral's tokens for a system prompt and an
    /// instruction and no template came with it (tekken.json has none), Mistral's (mistral-common, version 7 of its tokens).
    /// A repository's SYSTEM_PROMPT.txt stands for a system prompt that is not given.
    ///
    /// # Errors
    /// As [`from_metadata`](Self::from_metadata).
    pub fn of(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let own = Self::from_metadata(metadata)?;
        let is_mistral = || MISTRAL_TOKENS.iter().all(|token| tokenizer.id(token).is_some());
        if own.is_some() || !is_mistral() {
            return Ok(own);
        }
        let system = match metadata {
            Metadata::HuggingFace { folder, .. } => {
                let file = folder.join("SYSTEM_PROMPT.txt");
                match std::fs::read_to_string(&file) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
                    text => text.map_err(|source| Error::io(&file, source))?,
                }
            }
            Metadata::Gguf(_) => String::new(),
        };
        let text = |part: &str| serde_json::Value::from(part).to_string();
        Self::new(&format!("{{%- set system = {} -%}}\n{MISTRAL}", text(&system))).map(Some)
    }

    /// The source, for searching it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it reads a variable of this name that it does not set itself.
    pub fn reads(&self, variable: &str) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|template| template.undeclared_variables(false).contains(variable))
    }

    /// The rendered text.
    ///
    /// # Errors
    /// What the template raises, in its own words; what goes wrong in it, with the line.
    pub fn render(&self, messages: &[TemplateMessage], context: &TemplateContext) -> Result<String> {
        self.render_with(messages, context, &|text, _| Value::from(text))
    }

    /// Token ids of the rendered prompt. Marker literals inside messages and `extra` are text, the template's own
    /// are control tokens; never a second BOS.
    ///
    /// # Errors
    /// As of [`ChatTemplate::render`] and [`Tokenizer::encode`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[TemplateMessage],
        context: &TemplateContext,
    ) -> Result<Vec<u32>> {
        let mut texts = Vec::new();
        for message in messages {
            texts.extend([message.role.as_str(), &message.content]);
            texts.extend(message.reasoning_content.as_deref());
        }
        context.extra.values().for_each(|value| strings(value, &mut texts));
        let guard = Guard::new(tokenizer.added(), &self.source, texts)?;
        let rendered =
            self.render_with(messages, context, &|text, author| guard.guard(text, author).into())?;
        let (text, found) = guard.release(&rendered);
        let mut ids = tokenizer.encode_around(&text, &found)?;
        if let Some((bos, true)) = tokenizer.bos()
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Whether the opening of the assistant's turn ends with `marker`, whitespace aside: a template that opens
    /// the thought by itself.
    pub fn generation_prompt_ends_with(&self, marker: &str, context: &TemplateContext) -> bool {
        let question =
            TemplateMessage { role: "user".to_owned(), content: "?".to_owned(), reasoning_content: None };
        let context = TemplateContext { add_generation_prompt: true, ..context.clone() };
        self.render(&[question], &context).is_ok_and(|prompt| prompt.trim_end().ends_with(marker))
    }

    /// Renders with the messages' texts as `text` gives them.
    fn render_with(
        &self,
        messages: &[TemplateMessage],
        context: &TemplateContext,
        text: &dyn Fn(&str, Author) -> Value,
    ) -> Result<String> {
        let messages: Vec<Value> = messages.iter().map(|message| message_value(message, text)).collect();
        let now = context.now;
        let strftime_now = move |format: &str| -> Result<String, minijinja::Error> {
            let now = now.unwrap_or_else(|| jiff::Zoned::now().datetime());
            jiff::fmt::strtime::format(format, now)
                .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string()))
        };
        let mut variables = vec![
            ("messages", Value::from(messages)),
            ("add_generation_prompt", context.add_generation_prompt.into()),
            ("bos_token", context.bos_token.as_str().into()),
            ("eos_token", context.eos_token.as_str().into()),
            ("strftime_now", Value::from_function(strftime_now)),
        ];
        variables.extend(context.extra.iter().map(|(name, value)| (name.as_str(), json_value(value, text))));
        let template = self.environment.get_template(NAME);
        template
            .and_then(|template| template.render(Value::from_pairs(variables)))
            .map_err(|error| Error::Text(jinja::message(&error)))
    }
}

/// The template of a tokenizer_config.json: a string, or a list of named ones.
fn configured(template: &serde_json::Value) -> Option<String> {
    let named = |template: &&serde_json::Value| template["name"] == "default";
    match template {
        serde_json::Value::Array(templates) => templates.iter().find(named)?["template"].as_str(),
        template => literal(template),
    }
    .map(str::to_owned)
}

fn message_value(message: &TemplateMessage, text: &dyn Fn(&str, Author) -> Value) -> Value {
    let author = if message.role == "assistant" { Author::Assistant } else { Author::Other };
    let thought =
        message.reasoning_content.as_deref().map(|thought| ("reasoning_content", text(thought, author)));
    let fields = [("role", text(&message.role, Author::Other)), ("content", text(&message.content, author))];
    Value::from_pairs(fields.into_iter().chain(thought))
}

fn json_value(value: &serde_json::Value, text: &dyn Fn(&str, Author) -> Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (_, Some(value)) => Value::from(value),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(value) => text(value, Author::Other),
        serde_json::Value::Array(values) => values.iter().map(|value| json_value(value, text)).collect(),
        serde_json::Value::Object(fields) => Value::from_pairs(
            fields.iter().map(|(key, value)| (text(key, Author::Other), json_value(value, text))),
        ),
    }
}

/// All strings in a JSON value, keys included.
fn strings<'a>(value: &'a serde_json::Value, out: &mut Vec<&'a str>) {
    match value {
        serde_json::Value::String(text) => out.push(text),
        serde_json::Value::Array(values) => values.iter().for_each(|value| strings(value, out)),
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                out.push(key);
                strings(value, out);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
