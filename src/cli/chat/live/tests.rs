use std::num::NonZero;

use proptest::prelude::*;

use super::*;

/// A terminal of 20 columns and 8 rows, so that the area takes at most 4.
const SIZE: Size = Size { columns: 20, rows: 8 };

/// A terminal that shows what it is sent.
pub(in crate::cli::chat) fn terminal(size: Size, text: &str) -> vt100::Parser {
    let cells = |n: usize| NonZero::new(n as u16).unwrap();
    let mut terminal = vt100::Parser::new(cells(size.rows), cells(size.columns), 100);
    terminal.process(text.as_bytes());
    terminal
}

struct Screen {
    terminal: vt100::Parser,
    live: Live,
    size: Size,
}

impl Screen {
    fn new(before: &str) -> Self {
        Screen { terminal: terminal(SIZE, before), live: Live::new(SIZE, true), size: SIZE }
    }

    fn push(&mut self, text: &str) {
        let mut out = Vec::new();
        self.live.push(text, self.size, &mut out).unwrap();
        self.terminal.process(&out);
    }

    fn erase(&mut self) {
        let mut out = Vec::new();
        self.live.erase(self.size, &mut out).unwrap();
        self.terminal.process(&out);
    }

    fn lines(&self) -> Vec<String> {
        let screen = self.terminal.screen();
        let mut rows: Vec<String> = screen.rows(0, screen.size().1.get()).collect();
        rows.truncate(rows.iter().rposition(|r| !r.is_empty()).map_or(0, |last| last + 1));
        rows
    }
}

#[test]
fn text_appears_as_it_comes_and_wraps_before_the_last_column() {
    let mut screen = Screen::new("> why?\r\n");
    for piece in ["Let", " me see", ".\nA line of over twenty colu", "mns"] {
        screen.push(piece);
    }
    assert_eq!(screen.lines(), ["> why?", "Let me see.", "A line of over twen", "ty columns"]);
}

#[test]
fn of_a_text_taller_than_half_the_screen_the_last_rows_show() {
    let mut screen = Screen::new("> why?\r\n");
    for i in 0..30 {
        screen.push(&format!("thought {i}\n"));
    }
    assert_eq!(screen.lines(), ["> why?", "thought 27", "thought 28", "thought 29"]);
    screen.push("more");
    assert_eq!(screen.lines(), ["> why?", "thought 27", "thought 28", "thought 29", "more"]);
}

#[test]
fn erasing_leaves_the_screen_as_it_was() {
    for text in [
        "short",
        "two\nlines",
        "a line of far more than twenty columns, again and again\n\n",
        "\n\n\n\n\n\n\n\n",
    ] {
        let mut screen = Screen::new("one\r\ntwo\r\n> why?\r\n");
        for c in text.chars() {
            screen.push(&c.to_string());
        }
        screen.erase();
        assert_eq!(screen.lines(), ["one", "two", "> why?"], "after {text:?}");
        assert_eq!(screen.terminal.screen().cursor_position(), (3, 0), "after {text:?}");
    }
}

#[test]
fn erasing_works_at_the_bottom_of_a_full_screen() {
    let mut screen = Screen::new("1\r\n2\r\n3\r\n4\r\n5\r\n6\r\n7\r\n> why?\r\n");
    screen.push("one\ntwo\nthree\nfour\nfive\nsix");
    assert_eq!(screen.lines()[3..], ["> why?", "three", "four", "five", "six"]);
    screen.erase();
    assert_eq!(screen.lines(), ["5", "6", "7", "> why?"]);
}

#[test]
fn wide_characters_and_joined_emoji_count_their_columns() {
    let mut screen = Screen::new("");
    screen.push("\u{6df1}\u{5ea6}\u{601d}\u{8003}\u{6df1}\u{5ea6}\u{601d}\u{8003}\u{6df1}\u{5ea6}\u{601d}");
    assert_eq!(screen.live.rows.len(), 2);
    assert_eq!(screen.live.rows[0].width, 18);
    screen.erase();
    assert_eq!(screen.lines(), Vec::<String>::new());

    // Man, woman, girl, joined: one picture of two columns, never broken in two.
    screen.push("12345678901234567\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}x");
    assert_eq!(screen.live.rows[0].text, "12345678901234567\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}");
    assert_eq!(screen.live.rows[1].text, "x");
}

#[test]
fn a_tab_goes_to_the_next_stop() {
    let mut screen = Screen::new("");
    screen.push("a\tb\n\tc");
    assert_eq!(screen.lines(), ["a       b", "        c"]);
}

#[test]
fn a_narrower_terminal_gets_the_text_broken_anew() {
    let mut screen = Screen::new("> why?\r\n");
    screen.push("a line of thirty-two columns now\nx");
    screen.size = Size { columns: 12, rows: 12 };
    // A terminal that breaks long rows by itself shows the old rows like this.
    screen.terminal = terminal(screen.size, "> why?\r\na line of thi\r\nrty-two\r\ncolumns now\r\nx");
    screen.push("yz");
    assert_eq!(screen.lines(), ["> why?", "a line of t", "hirty-two c", "olumns now", "xyz"]);
    screen.erase();
    assert_eq!(screen.lines(), ["> why?"]);
}

#[test]
fn a_wider_terminal_gets_the_text_joined_again() {
    let mut screen = Screen::new("> why?\r\n");
    screen.push("a line of thirty-two columns now");
    screen.size.columns = 60;
    screen.terminal.screen_mut().set_size(NonZero::new(8).unwrap(), NonZero::new(60).unwrap());
    screen.push("\ny");
    assert_eq!(screen.lines(), ["> why?", "a line of thirty-two columns now", "y"]);
}

#[test]
fn a_terminal_of_one_row_or_column_is_survived() {
    for size in [Size { columns: 1, rows: 1 }, Size { columns: 2, rows: 3 }] {
        let mut live = Live::new(size, false);
        let mut out = Vec::new();
        live.push("wide \u{6df1}\u{5ea6}\ttext\n\nhere", size, &mut out).unwrap();
        live.erase(size, &mut out).unwrap();
    }
}

#[test]
fn a_line_of_progress_is_cut_to_the_width_and_replaced() {
    let mut screen = Screen::new("");
    for line in ["reading the prompt: 512 of 2048", "reading the prompt: 1024 of 2048", "done"] {
        let mut out = Vec::new();
        screen.live.replace(line, SIZE, &mut out).unwrap();
        screen.terminal.process(&out);
        assert_eq!(screen.lines(), [&line[..line.len().min(19)]]);
    }
}

#[test]
fn without_colour_nothing_is_dimmed() {
    let drawn = |dim| {
        let mut out = Vec::new();
        Live::new(SIZE, dim).push("text", SIZE, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert!(drawn(true).contains("\u{1b}[2m"));
    assert!(!drawn(false).contains("\u{1b}[2m"));
}

proptest! {
    #[test]
    fn any_text_in_any_pieces_shows_its_last_rows_and_can_be_taken_away(
        text in "([a-z ]|\\PC|\n|\t|\u{6df1}|\u{fe0f}|\u{1f469}){0,200}",
        piece in 1usize..20,
    ) {
        let mut screen = Screen::new("> why?\r\n");
        let mut at_once = Live::new(SIZE, true);
        at_once.push(&text, SIZE, &mut Vec::new()).unwrap();
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(piece) {
            screen.push(&piece.iter().collect::<String>());
        }
        let rows = |live: &Live| live.rows.iter().map(|row| row.text.clone()).collect::<Vec<_>>();
        prop_assert_eq!(rows(&screen.live), rows(&at_once));
        prop_assert!(screen.live.rows.len() <= SIZE.rows / 2);
        prop_assert!(screen.live.rows.iter().all(|row| row.width < SIZE.columns));
        if text.contains('\u{fe0f}') {
            return Ok(()); // terminals disagree on how wide a character becomes by a variation selector, this one too
        }
        let bottom = screen.terminal.screen().cursor_position().0 as usize;
        prop_assert_eq!(bottom, screen.live.rows.len().max(1));
        screen.erase();
        prop_assert_eq!(screen.lines(), ["> why?"]);
        prop_assert_eq!(screen.terminal.screen().cursor_position(), (1, 0));
    }
}
