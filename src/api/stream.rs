//! From bytes of a trace to the text of its thought and its answer.

use crate::text::Detokenizer;

/// The text of one part: whole characters, without white space at either end unless verbatim.
#[derive(Debug, Default)]
pub(super) struct Channel {
    detokenizer: Detokenizer,
    stops: Stops,
    verbatim: bool,
    space: String, // white space that is dropped unless something follows
    text: String,
}

impl Channel {
    pub fn new(verbatim: bool, stops: Vec<String>) -> Self {
        Channel { verbatim, stops: Stops::new(stops, verbatim), ..Channel::default() }
    }

    /// An empty one of the same kind.
    pub fn fresh(&self) -> Self {
        Channel::new(self.verbatim, self.stops.stops.clone())
    }

    /// All the text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Takes the text out, and begins anew.
    pub fn take(&mut self) -> String {
        let fresh = self.fresh();
        std::mem::replace(self, fresh).text
    }

    /// Puts text before what comes.
    pub fn append(&mut self, text: &str) {
        self.text.push_str(text);
        self.stops.shows_space |= !self.text.is_empty();
    }

    /// Adds bytes; gives the text that became visible, and whether a stop string ended it.
    pub fn push(&mut self, bytes: &[u8]) -> (String, bool) {
        let text = self.detokenizer.push(bytes);
        let (text, stopped) = self.stops.push(text);
        (self.show(&text), stopped)
    }

    /// The end: gives what was held back.
    pub fn finish(&mut self) -> String {
        let rest = self.detokenizer.finish();
        let (mut text, stopped) = self.stops.push(rest);
        if !stopped {
            text.push_str(&self.stops.finish());
        }
        self.show(&text)
    }

    fn show(&mut self, text: &str) -> String {
        if self.verbatim {
            self.text.push_str(text);
            return text.to_owned();
        }
        let text = if self.text.is_empty() { text.trim_start() } else { text };
        let end = text.trim_end().len();
        if end == 0 {
            self.space.push_str(text);
            return String::new();
        }
        let mut shown = std::mem::take(&mut self.space);
        shown.push_str(&text[..end]);
        self.space.push_str(&text[end..]);
        self.text.push_str(&shown);
        shown
    }
}

/// Looks for strings that end a text; holds back what may be the beginning of one.
#[derive(Debug, Default)]
struct Stops {
    stops: Vec<String>,
    held: String,
    hit: bool,
    /// White space is shown from now on; before, it is no stop string either, but may begin one.
    shows_space: bool,
}

impl Stops {
    fn new(mut stops: Vec<String>, shows_space: bool) -> Self {
        stops.retain(|s| !s.is_empty());
        Stops { stops, held: String::new(), hit: false, shows_space }
    }

    /// Adds text; gives what stands before the first stop string, and whether there was one.
    fn push(&mut self, text: String) -> (String, bool) {
        if self.hit {
            return (String::new(), true);
        }
        if self.stops.is_empty() {
            return (text, false);
        }
        self.held.push_str(&text);
        let blank = if self.shows_space { 0 } else { self.held.len() - self.held.trim_start().len() };
        let find = |stop: &String| {
            let from = if stop.trim_start().is_empty() { blank } else { 0 };
            self.held[from..].find(stop.as_str()).map(|at| from + at)
        };
        if let Some(at) = self.stops.iter().filter_map(find).min() {
            self.hit = true;
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |tail: &str| self.stops.iter().any(|s| s.starts_with(tail));
        let keep = self.held.char_indices().map(|(at, _)| at).find(|&at| begins(&self.held[at..]));
        let held = self.held.split_off(keep.unwrap_or(self.held.len()));
        let text = std::mem::replace(&mut self.held, held);
        self.shows_space |= !text.trim_start().is_empty();
        (text, false)
    }

    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(channel: &mut Channel, pieces: &[&str]) -> Vec<String> {
        let mut shown: Vec<String> = pieces.iter().map(|p| channel.push(p.as_bytes()).0).collect();
        shown.push(channel.finish());
        shown
    }

    #[test]
    fn white_space_at_the_ends_is_never_shown() {
        let mut channel = Channel::new(false, vec![]);
        assert_eq!(show(&mut channel, &["\n\n", " a ", "\n", "b\n"]), ["", "a", "", " \nb", ""]);
        assert_eq!(channel.text(), "a \nb");
    }

    #[test]
    fn verbatim_text_is_shown_as_it_is() {
        let mut channel = Channel::new(true, vec![]);
        assert_eq!(show(&mut channel, &["\n a", " "]).concat(), "\n a ");
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_not_shown() {
        let mut channel = Channel::new(false, vec!["END".into(), "E!".into()]);
        assert_eq!(channel.push(b"one E"), ("one".into(), false));
        assert_eq!(channel.push(b"N"), ("".into(), false));
        assert_eq!(channel.push(b"Dtwo"), ("".into(), true));
        assert_eq!((channel.finish().as_str(), channel.text()), ("", "one"));
    }

    #[test]
    fn white_space_behind_text_that_was_put_there_is_a_stop_string() {
        let mut channel = Channel::new(false, vec!["\n".into()]);
        channel.append("42");
        assert_eq!(channel.push(b"\n43"), ("".into(), true));
    }

    #[test]
    fn a_stop_string_may_begin_with_white_space_at_the_start() {
        let mut channel = Channel::new(false, vec!["\n\nUser:".into(), "\n".into()]);
        assert_eq!(channel.push(b"\n\n\n"), ("".into(), false));
        assert_eq!(channel.push(b"User: who"), ("".into(), true));
        assert_eq!(channel.text(), "");
    }

    #[test]
    fn a_stop_string_of_white_space_stops_behind_the_first_visible_character() {
        let mut channel = Channel::new(false, vec!["\n\n".into()]);
        assert_eq!(channel.push(b"\n\n"), ("".into(), false));
        assert_eq!(channel.push(b"\n42\n"), ("42".into(), false));
        assert_eq!(channel.push(b"\n"), ("".into(), true));
        assert_eq!(Channel::new(true, vec!["\n\n".into()]).push(b"\n\n4"), ("".into(), true));
    }

    #[test]
    fn what_was_held_back_is_not_left_behind_when_the_text_is_taken_out() {
        let mut channel = Channel::new(false, vec!["END".into()]);
        channel.push(b"the E");
        assert_eq!((channel.finish(), channel.take()), (" E".into(), "the E".into()));
        assert_eq!(channel.push(b"ND END"), ("ND".into(), true));
        channel.take();
        assert_eq!(channel.push(b"b"), ("b".into(), false));
    }

    #[test]
    fn what_only_began_like_a_stop_string_is_shown() {
        let mut channel = Channel::new(false, vec!["END".into()]);
        assert_eq!(show(&mut channel, &["EN", "EMY E"]), ["", "ENEMY", " E"]);
    }
}
