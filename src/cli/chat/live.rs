//! The part of the screen that is drawn anew: a thought while it streams, a line of progress.
//!
//! It wraps its text by itself, with the terminal's own wrapping off while it draws, so that each of its rows is
//! exactly one row of the screen whatever the terminal thinks of an emoji's width. It never grows over half the
//! screen: of a longer text the last rows show. So it can always be taken away again.

use std::collections::VecDeque;
use std::io::{self, Write};

use crossterm::queue;
use crossterm::style::{Attribute, SetAttribute};
use crossterm::terminal::{Clear, ClearType, DisableLineWrap, EnableLineWrap};
use unicode_width::UnicodeWidthChar;

/// Columns between two tab stops.
const TAB: usize = 8;

/// Columns and rows of the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

impl Size {
    /// The terminal's size now; 80 by 24 where it does not say.
    pub(super) fn of_terminal() -> Self {
        match crossterm::terminal::size() {
            Ok((columns, rows)) if columns > 0 && rows > 0 => {
                Size { columns: columns.into(), rows: rows.into() }
            }
            _ => Size { columns: 80, rows: 24 },
        }
    }

    /// Columns that a row may fill: the last stays free, for characters wider than they say.
    fn usable(self) -> usize {
        self.columns.saturating_sub(1).max(2)
    }

    /// Rows that the area may take.
    fn most_rows(self) -> usize {
        (self.rows / 2).max(1)
    }
}

#[derive(Debug, Default)]
struct Row {
    text: String,
    /// Columns that `text` fills.
    width: usize,
    /// The text goes on in the next row without a line break.
    wraps: bool,
}

/// An area of the screen that ends at the cursor.
pub(super) struct Live {
    size: Size,
    dim: bool,
    /// The rows on the screen, from the top; the cursor stands at the end of the last.
    rows: VecDeque<Row>,
    /// The next character belongs to the one before (a joined emoji).
    joined: bool,
}

impl Live {
    /// An empty area at the cursor, which must stand in the first column.
    pub(super) fn new(size: Size, dim: bool) -> Self {
        Live { size, dim, rows: VecDeque::new(), joined: false }
    }

    /// Whether it shows nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Appends text. Line feeds break lines; other control characters must not be in it.
    pub(super) fn push(&mut self, text: &str, size: Size, out: &mut impl Write) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if size != self.size {
            self.resize(size, out)?;
        }
        let drawn = self.rows.len();
        let drawn_bytes = self.rows.back().map_or(0, |row| row.text.len());
        self.lay_out(text);
        queue!(out, DisableLineWrap)?;
        if self.rows.len() <= size.most_rows() {
            self.style(out)?;
            for (i, row) in self.rows.iter().enumerate().skip(drawn.saturating_sub(1)) {
                let known = if i + 1 == drawn { drawn_bytes } else { 0 };
                let line_break = if i == 0 || i + 1 == drawn { "" } else { "\r\n" };
                write!(out, "{line_break}{}", &row.text[known..])?;
            }
        } else {
            go_up(drawn.saturating_sub(1), out)?;
            self.rows.drain(..self.rows.len() - size.most_rows());
            self.style(out)?;
            self.draw(out)?;
        }
        queue!(out, SetAttribute(Attribute::Reset), EnableLineWrap)?;
        out.flush()
    }

    /// Shows one line instead of what was there, cut to the terminal's width.
    pub(super) fn replace(&mut self, line: &str, size: Size, out: &mut impl Write) -> io::Result<()> {
        self.erase(size, out)?;
        let mut width = 0;
        let end = line.char_indices().find_map(|(at, c)| {
            width += c.width().unwrap_or(0);
            (width > size.usable()).then_some(at)
        });
        self.push(&line[..end.unwrap_or(line.len())], size, out)
    }

    /// Takes it all away; the cursor stands where the area began.
    pub(super) fn erase(&mut self, size: Size, out: &mut impl Write) -> io::Result<()> {
        if !self.is_empty() {
            go_up(self.rows_on_screen(size) - 1, out)?;
            queue!(out, Clear(ClearType::FromCursorDown))?;
        }
        self.rows.clear();
        self.joined = false;
        self.size = size;
        Ok(())
    }

    /// Leaves what it shows on the screen; the cursor stands below.
    pub(super) fn keep(&mut self, out: &mut impl Write) -> io::Result<()> {
        if !self.is_empty() {
            write!(out, "\r\n")?;
        }
        self.rows.clear();
        Ok(())
    }

    /// Rows that the text takes after the terminal changed its size: most terminals break rows that have become
    /// too long, and none joins rows that were broken by a line feed.
    fn rows_on_screen(&self, size: Size) -> usize {
        let rows = |row: &Row| row.width.div_ceil(size.columns.max(1)).max(1);
        self.rows.iter().map(rows).sum::<usize>().min(size.rows.max(1))
    }

    fn resize(&mut self, size: Size, out: &mut impl Write) -> io::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let before = Live { rows, ..Live::new(self.size, self.dim) };
        if before.is_empty() {
            self.size = size;
            return Ok(());
        }
        go_up(before.rows_on_screen(size) - 1, out)?;
        queue!(out, Clear(ClearType::FromCursorDown), DisableLineWrap)?;
        self.size = size;
        for (i, row) in before.rows.iter().enumerate() {
            self.lay_out(&row.text);
            if !row.wraps && i + 1 < before.rows.len() {
                self.lay_out("\n");
            }
        }
        self.rows.drain(..self.rows.len().saturating_sub(size.most_rows()));
        self.style(out)?;
        self.draw(out)?;
        queue!(out, SetAttribute(Attribute::Reset), EnableLineWrap)
    }

    /// Breaks text into rows behind those that are there.
    fn lay_out(&mut self, text: &str) {
        for c in text.chars() {
            if self.rows.is_empty() {
                self.rows.push_back(Row::default());
            }
            if c == '\n' {
                self.rows.push_back(Row::default());
                continue;
            }
            let last = self.rows.len() - 1;
            let at = self.rows[last].width;
            let width = match c {
                '\t' => TAB - at % TAB,
                _ if self.joined => 0,
                _ => c.width().unwrap_or(0),
            };
            self.joined = c == '\u{200d}';
            if at + width > self.size.usable() && at > 0 {
                self.rows[last].wraps = true;
                self.rows.push_back(Row::default());
            }
            let row = self.rows.back_mut().expect("a row was pushed");
            if c == '\t' {
                let width = width.min(self.size.usable() - row.width);
                row.text.extend(std::iter::repeat_n(' ', width));
                row.width += width;
            } else {
                row.text.push(c);
                row.width += width;
            }
        }
    }

    /// Draws all rows from the cursor on, over what is there.
    fn draw(&self, out: &mut impl Write) -> io::Result<()> {
        for (i, row) in self.rows.iter().enumerate() {
            let line_break = if i == 0 { "" } else { "\r\n" };
            write!(out, "{line_break}{}", row.text)?;
            queue!(out, Clear(ClearType::UntilNewLine))?;
        }
        queue!(out, Clear(ClearType::FromCursorDown))
    }

    fn style(&self, out: &mut impl Write) -> io::Result<()> {
        if self.dim { queue!(out, SetAttribute(Attribute::Dim)) } else { Ok(()) }
    }
}

/// To the first column of the row that stands `rows` higher.
fn go_up(rows: usize, out: &mut impl Write) -> io::Result<()> {
    write!(out, "\r")?;
    // Zero would move by one.
    if rows > 0 { queue!(out, crossterm::cursor::MoveUp(rows.min(u16::MAX.into()) as u16)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal of 20 columns and 8 rows, so that the area takes at most 4.
    const SIZE: Size = Size { columns: 20, rows: 8 };

    struct Screen {
        terminal: vt100::Parser,
        live: Live,
        size: Size,
    }

    impl Screen {
        fn new(before: &str) -> Self {
            let mut terminal = vt100::Parser::new(SIZE.rows as u16, SIZE.columns as u16, 100);
            terminal.process(before.as_bytes());
            Screen { terminal, live: Live::new(SIZE, true), size: SIZE }
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
            let mut rows: Vec<String> = screen.rows(0, screen.size().1).collect();
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
        screen
            .push("\u{6df1}\u{5ea6}\u{601d}\u{8003}\u{6df1}\u{5ea6}\u{601d}\u{8003}\u{6df1}\u{5ea6}\u{601d}");
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
        screen.terminal = vt100::Parser::new(12, 12, 100);
        screen.terminal.process(b"> why?\r\na line of thi\r\nrty-two\r\ncolumns now\r\nx");
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
        screen.terminal.screen_mut().set_size(8, 60);
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
}
