use std::cell::RefCell;
use std::rc::Rc;

use super::super::live::Size;
use super::super::turn::tests::stats;
use super::*;
use crate::Error;
use crate::api::{Event, Finish};
use crate::cli::render::Console;

/// A turn: the messages it was asked with, and the options.
type Asked = (Vec<Message>, Options);

/// A model that answers each message with it in capitals, and remembers what it was asked with.
#[derive(Default)]
struct Echo {
    messages: Vec<Message>,
    asked: Rc<RefCell<Vec<Asked>>>,
    name: String,
}

impl Echo {
    fn answer(&mut self, options: &Options) -> Result<std::vec::IntoIter<Result<Event>>> {
        self.asked.borrow_mut().push((self.messages.clone(), options.clone()));
        let said = self.messages.last().filter(|m| m.role == Role::User);
        let said = said.ok_or(Error::Usage("there is no message to answer".into()))?.content.clone();
        if said.ends_with("fail") {
            self.messages.pop();
            return Err(Error::Text("the template failed".into()));
        }
        let mut stats = stats(Finish::Stop, 3, 2);
        if said == "stop" {
            options.cancel.as_ref().unwrap().cancel();
            stats.finish = Finish::Interrupted;
        }
        (stats.thought, stats.answer) = ("hm".into(), said.to_uppercase());
        let mut message = Message::assistant(&stats.answer);
        message.thought = Some(stats.thought.clone());
        self.messages.push(message);
        let events = vec![
            Ok(Event::Thought("hm".into())),
            Ok(Event::ThoughtDone { tokens: 3, seconds: 1.0 }),
            Ok(Event::Answer(stats.answer.clone())),
            Ok(Event::Done(Box::new(stats))),
        ];
        Ok(events.into_iter())
    }
}

impl Reply for std::vec::IntoIter<Result<Event>> {}

impl Talk for Echo {
    fn messages(&self) -> &[Message] {
        &self.messages
    }
    fn set_messages(&mut self, messages: Vec<Message>) {
        self.messages = messages;
    }
    fn set_system(&mut self, system: Option<String>) {
        self.messages.retain(|m| m.role != Role::System);
        self.messages.splice(0..0, system.map(Message::system));
    }
    fn clear(&mut self) {
        self.messages.retain(|m| m.role == Role::System);
    }
    fn undo(&mut self) -> Option<String> {
        let at = self.messages.iter().rposition(|m| m.role == Role::User)?;
        self.messages.drain(at..).next().map(|m| m.content)
    }
    fn ask(&mut self, text: String, options: &Options) -> Result<impl Reply> {
        self.messages.push(Message::user(text));
        self.answer(options)
    }
    fn regenerate(&mut self, options: &Options) -> Result<impl Reply> {
        self.messages.pop_if(|m| m.role == Role::Assistant);
        self.answer(options)
    }
    fn switch(&mut self, name: &str, options: &mut Options) -> Result<()> {
        if name == "none" {
            return Err(Error::Hub("none: no such model".into()));
        }
        self.name = name.into();
        options.sampling = Default::default();
        Ok(())
    }
    fn cached(&self, _options: &Options) -> (usize, u64) {
        if self.messages.is_empty() { (0, 0) } else { (7, 7000) }
    }
    fn save_cache(&self, _options: &Options, path: &Path) -> Result<()> {
        std::fs::write(path, "pensive sequence 2\n").map_err(|e| Error::io(path, e))
    }
    fn load_cache(&mut self, path: &Path) -> Result<()> {
        std::fs::read(path).map(drop).map_err(|e| Error::io(path, e))
    }
    fn write_receipt(&self, path: &Path, stats: &Stats) -> Result<()> {
        std::fs::write(path, &stats.answer).map_err(|e| Error::io(path, e))
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn describe(&self) -> String {
        format!("  model  {}\n", self.name)
    }
    fn sampling(&self) -> Sampling {
        Sampling::default()
    }
    fn think(&self) -> Think {
        Think::Auto
    }
}

struct Done {
    code: ExitCode,
    out: String,
    err: String,
    asked: Vec<Asked>,
}

impl Done {
    /// The texts of the messages that the n-th turn was asked with.
    fn asked(&self, n: usize) -> Vec<&str> {
        self.asked[n].0.iter().map(|m| m.content.as_str()).collect()
    }
}

/// Feeds lines to a chat through pipes.
fn chat(lines: &str) -> Done {
    chat_in(std::path::Path::new("nowhere"), lines)
}

fn chat_in(folder: &std::path::Path, lines: &str) -> Done {
    resumed_in(folder, None, lines)
}

fn resumed_in(folder: &std::path::Path, saved: Option<(&str, &Options)>, lines: &str) -> Done {
    let asked = Rc::default();
    let talk = Echo { name: "echo".into(), asked: Rc::clone(&asked), ..Echo::default() };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let size = || Size { columns: 80, rows: 24 };
    let screen = Screen { rich: false, console: Console::default(), out: &mut out, err: &mut err, size };
    let reader = Box::new(std::io::Cursor::new(lines.as_bytes().to_vec()));
    let input = Input::Lines { reader, prompt: false };
    let store = Store::new(folder.to_owned());
    let options = saved.map_or_else(Options::new, |(_, first)| first.clone());
    let mut repl = Repl::new(talk, screen, input, options, Thought::Hide, store, "thought.md".into());
    if let Some((name, first)) = saved {
        repl.resume(name, first).unwrap();
    }
    let code = repl.run().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let asked = asked.take();
    Done { code, out: text(out), err: text(err), asked }
}

#[test]
fn each_piped_line_is_a_turn_that_knows_the_ones_before() {
    let done = chat("one\n\ntwo\n");
    assert_eq!((done.out.as_str(), done.err.as_str()), ("ONE\nTWO\n", ""));
    assert_eq!(done.asked(1), ["one", "ONE", "two"]);
    assert_eq!(done.code, ExitCode::SUCCESS);
}

#[test]
fn a_command_is_never_said_to_the_model() {
    let done = chat("/help\n/stats\n/unheard\none\n/bye\ntwo\n");
    assert_eq!(done.out, "ONE\n");
    assert!(done.err.contains("/regen") && done.err.contains("there was no answer yet"));
    assert!(done.err.contains("unknown command /unheard"));
}

#[test]
fn a_failure_is_told_and_the_chat_goes_on_to_exit_with_1() {
    let done = chat("fail\none\n");
    assert_eq!((done.out.as_str(), done.err.as_str()), ("ONE\n", "the template failed\n"));
    assert_eq!(done.code, ExitCode::FAILURE);
}

#[test]
fn an_interruption_of_piped_lines_ends_them_with_130() {
    let done = chat("stop\nnever said\n");
    assert_eq!((done.out.as_str(), done.err.as_str()), ("STOP\n", "stopped\n"));
    assert_eq!(done.code, ExitCode::from(130));
    assert_eq!(done.asked.len(), 1);
}

#[test]
fn regen_answers_the_last_message_again_and_undo_takes_it_back() {
    let done = chat("/regen\none\ntwo\n/regen\n/undo\nthree\n/undo\n/undo\n/undo\n");
    assert_eq!(done.out, "ONE\nTWO\nTWO\nTHREE\n");
    assert!(done.err.starts_with("there is no message to answer\n"));
    assert_eq!(done.asked(3), ["one", "ONE", "two"]);
    assert_eq!(done.asked(4), ["one", "ONE", "three"]);
    assert!(done.err.ends_with("taken back: three\ntaken back: one\nthere is no message to take back\n"));
}

#[test]
fn clear_keeps_the_system_message() {
    let done = chat("/system Be brief.\none\n/clear\ntwo\n/system\n/system \"\"\n/system\n");
    assert_eq!(done.asked(1), ["Be brief.", "two"]);
    assert!(done.err.ends_with(
        "Be brief.\nthe system message is removed\nthere is no system message: /system TEXT sets one\n"
    ));
}

#[test]
fn a_file_that_was_read_goes_before_the_next_message_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my notes.txt");
    std::fs::write(&path, "first\nsecond\n").unwrap();
    let path = path.display();
    let done = chat(&format!("/read {path}\nsummarise\nagain\n/read \"{path}\"\n/read nothing.txt\nx\n"));
    assert_eq!(done.asked(0), ["first\nsecond\n\nsummarise"]);
    assert_eq!(done.asked(1)[2], "again");
    assert_eq!(done.asked(2)[4], "first\nsecond\n\nx");
    assert!(done.err.contains("my notes.txt: 2 lines go with the next message"));
    assert!(done.err.contains("nothing.txt: "));
}

#[test]
fn a_file_stays_attached_when_its_turn_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("note.txt");
    std::fs::write(&path, "first\n").unwrap();
    let done = chat(&format!("/read {}\nfail\nsummarise\nagain\n", path.display()));
    assert!(done.err.contains("note.txt: 1 line goes with the next message"), "{}", done.err);
    assert!(done.err.contains("1 line still goes with the next message (/undo drops them)"), "{}", done.err);
    assert_eq!(done.asked(1), ["first\n\nsummarise"]);
    assert_eq!(done.asked(2)[2], "again");
}

#[test]
fn undo_takes_back_a_file_before_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("note.txt");
    std::fs::write(&path, "first\n").unwrap();
    let done = chat(&format!("one\n/read {}\n/undo\ntwo\n/undo\nthree\n", path.display()));
    assert!(
        done.err.contains("taken back: what /read put before the next message\ntaken back: two\n"),
        "{}",
        done.err
    );
    assert_eq!(done.asked(1), ["one", "ONE", "two"]);
    assert_eq!(done.asked(2), ["one", "ONE", "three"]);
}

#[test]
fn settings_hold_from_the_next_turn_on() {
    let done = chat(
        "/set temperature 0\n/set seed 7\n/think off\none\n/set temperature default\n/set top-p 3\ntwo\n",
    );
    let (first, second) = (&done.asked[0].1, &done.asked[1].1);
    assert_eq!((first.sampling.temperature, first.seed, first.think), (Some(0.0), Some(7), Some(Think::Off)));
    assert_eq!((second.sampling.temperature, second.seed), (None, Some(7)));
    assert!(done.err.contains("temperature 0\n") && done.err.contains("thinking: off\n"));
    assert!(done.err.contains("top-p of 3: must be above 0 and at most 1"), "{}", done.err);
}

#[test]
fn thoughts_can_be_shown_hidden_and_seen_again() {
    let done = chat("/thought\none\n/thought\n/thought show\ntwo\n");
    assert_eq!(
        done.err,
        "there was no thought yet (thoughts: hide)\nhm\nthoughts: show\nthought:\nhm\nthought for 1.0 s, 3 tokens\n"
    );
}

#[test]
fn a_saved_chat_is_loaded_with_its_thoughts() {
    let folder = tempfile::tempdir().unwrap();
    let first = chat_in(folder.path(), "/load\n/save\n/system s\none\n/save sums\ntwo\n/save\n");
    assert!(
        first.err.starts_with(
            "no chat is saved yet: /save NAME saves this one\n/save NAME: give the chat a name\n"
        )
    );
    let second = chat_in(folder.path(), "/load\n/load sums\nthree\n/load none\n/model other\n/load sums\n");
    assert_eq!(second.asked(0), ["s", "one", "ONE", "two", "TWO", "three"]);
    assert_eq!(second.asked[0].0[2].thought.as_deref(), Some("hm"));
    assert!(second.err.contains("\nloaded sums: 5 messages, you last said: two\n"), "{}", second.err);
    assert!(second.err.contains("none.json: there is no such chat"));
    assert!(second.err.ends_with("it was held with echo; this is other, whose settings stay\n"));
}

#[test]
fn saved_chats_are_listed_with_what_is_in_them_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cut.json"), "{\"model\": \"ec").unwrap();
    let done = chat_in(folder.path(), "one\n/save sums\n/load\n/rm cut\n/rm sums\n/load\n");
    let listed: Vec<Vec<&str>> =
        done.err.lines().filter(|l| l.starts_with("  ")).map(|l| l.split_whitespace().collect()).collect();
    assert_eq!((listed[0][0], listed[0][2..].join(" ")), ("cut", "damaged".into()), "{}", done.err);
    assert_eq!((listed[1][0], listed[1][2..].join(" ")), ("sums", "2 messages echo".into()));
    assert_eq!(listed[1][1].len(), "2027-01-31".len());
    assert_eq!((listed.len(), done.err.matches("deleted ").count()), (2, 2), "{}", done.err);
    assert!(done.err.ends_with("no chat is saved yet: /save NAME saves this one\n"));
}

#[test]
fn a_chat_is_loaded_with_its_settings_and_its_last_thought() {
    let folder = tempfile::tempdir().unwrap();
    chat_in(folder.path(), "/set temperature 0\n/think off\n/budget 5\none\n/save a\n");
    let done = chat_in(folder.path(), "/set seed 3\n/load a\n/thought\ntwo\n/model b\n/load a\nthree\n");
    let (options, other) = (&done.asked[0].1, &done.asked[1].1);
    assert_eq!((options.sampling.temperature, options.think), (Some(0.0), Some(Think::Off)));
    assert_eq!((options.thought.budget, options.seed), (Some(5), None));
    assert!(done.err.contains("you last said: one\nhm\n"), "{}", done.err);
    assert_eq!(other.sampling.temperature, None, "another model's settings are its own");
}

#[test]
fn a_chat_is_gone_on_with_from_the_start_and_what_was_given_goes_before_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    chat_in(folder.path(), "/set temperature 0\n/set seed 7\none\n/save a\n");
    let first = Options::new().temperature(0.5);
    let done = resumed_in(folder.path(), Some(("a", &first)), "two\n");
    assert_eq!(done.asked(0), ["one", "ONE", "two"]);
    assert_eq!((done.asked[0].1.sampling.temperature, done.asked[0].1.seed), (Some(0.5), Some(7)));
    assert_eq!(done.err, "loaded a: 2 messages, you last said: one\n");
}

#[test]
fn another_model_goes_on_with_the_conversation_and_its_own_sampling() {
    let done = chat("/set temperature 0\n/set seed 7\none\n/model none\n/model other\n/model\ntwo\n");
    assert!(done.err.contains("none: no such model\n") && done.err.contains("  model  other\n"));
    assert_eq!(done.asked(1), ["one", "ONE", "two"]);
    assert_eq!((done.asked[1].1.sampling.temperature, done.asked[1].1.seed), (None, Some(7)));
}

#[test]
fn stats_tell_the_last_turn() {
    let done = chat("one\n/stats\n");
    assert_eq!(
        done.err,
        "  prompt   20 tokens (5 still in the cache), 150.0 tokens/s\n  thought  3 tokens\n  answer   2 tokens\n  \
         speed    2.0 tokens/s, 2.1 s\n  context  25 of 4096 tokens (1%)\n  seed     7\n"
    );
}

#[test]
fn an_answer_is_copied_to_a_terminals_clipboard_only() {
    let done = chat("/copy\none\n/copy\n");
    assert_eq!(done.err, "there is no answer to copy yet\n/copy needs a terminal\n");
    assert!(!done.out.contains('\u{1b}'));
}

#[test]
fn a_recalled_message_is_cut_to_one_line() {
    assert_eq!(first_line("one"), "one");
    assert_eq!(first_line("one\ntwo"), "one …");
    assert_eq!(first_line(&"é".repeat(61)), format!("{}…", "é".repeat(60)));
    assert_eq!(first_line(""), "");
}

#[test]
fn a_chat_is_saved_and_loaded_with_its_keys_and_values_if_asked() {
    let folder = tempfile::tempdir().unwrap();
    let first = chat_in(folder.path(), "one\n/save --kv sums\n");
    assert!(first.err.contains("keys and values of 7 tokens, 7 kB"), "{}", first.err);
    assert!(folder.path().join("sums.json.kv").exists());
    let second = chat_in(folder.path(), "/load sums\n/save\n");
    assert!(second.err.contains("with the keys and values of 7 tokens"), "{}", second.err);
    assert!(!folder.path().join("sums.json.kv").exists(), "they are not saved unasked, nor left stale");
    assert!(second.err.ends_with("sums.json.kv: --kv saves a new one\n"), "{}", second.err);
}

#[test]
fn without_messages_there_are_no_keys_and_values_to_save() {
    let folder = tempfile::tempdir().unwrap();
    let done = chat_in(folder.path(), "one\n/save a --kv\n/clear\n/save b --kv\n/save --force a --kv\n");
    assert_eq!(done.err.matches("no keys and values belong to these messages yet").count(), 2);
    for left in ["a.json.kv", "b.json.kv"] {
        assert!(!folder.path().join(left).exists(), "{left} is of what was forgotten");
    }
}

#[test]
fn a_chat_replaces_the_one_it_came_from_and_another_only_by_force() {
    let folder = tempfile::tempdir().unwrap();
    let first = chat_in(folder.path(), "one\n/save a\ntwo\n/save a\n/clear\nthree\n/save a\n/save b\n");
    assert_eq!(first.err.matches("or replace it by /save a --force\n").count(), 1, "{}", first.err);
    let lines = "/load a\n/save c\n/save a\n/save b\n/save b --force\n/load b\n/save a\nfour\n";
    let second = chat_in(folder.path(), lines);
    assert_eq!(second.err.matches("--force").count(), 2, "b at first, and a as b was loaded: {}", second.err);
    assert_eq!(second.asked(0), ["one", "ONE", "two", "TWO", "four"]);
}

#[test]
fn saving_a_chat_leaves_files_that_are_not_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (chat, kv) = (folder.path().join("results.json"), folder.path().join("results.json.kv"));
    std::fs::write(&kv, "mine").unwrap();
    let done = chat_in(folder.path(), &format!("one\n/save {0}\n/save {0} --kv\n", chat.display()));
    assert_eq!(std::fs::read_to_string(&kv).unwrap(), "mine");
    assert!(done.err.contains("saved to") && !done.err.contains("removed"), "{}", done.err);
    assert!(
        done.err.ends_with("results.json.kv: exists and holds no keys and values: choose another name\n")
    );
}

#[test]
fn each_answer_s_receipt_is_written_from_when_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r.json");
    let lines = format!("one\n/receipt {}\ntwo\n/receipt\nthree\n", file.display());
    let done = chat_in(folder.path(), &lines);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "TWO");
    assert_eq!(
        done.asked.iter().map(|(_, options)| options.record).collect::<Vec<_>>(),
        [false, true, false]
    );
    let done = chat(&format!("/receipt {}\none\n", folder.path().join("none/r.json").display()));
    assert!(done.err.contains("r.json: there is no folder") && !done.asked[0].1.record, "{}", done.err);
}
