//! What imports what: as ARCHITECTURE.md says, read from the sources. Tests may import anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A module's path; the crate's is empty.
type Module = Vec<String>;

/// The modules of a crate.
#[derive(Default)]
struct Crate {
    /// Their sources, without comments and tests.
    code: BTreeMap<Module, String>,
    /// The paths behind names that a module imports, or passes on.
    names: BTreeMap<(Module, String), String>,
}

impl Crate {
    fn read() -> Crate {
        let mut all = Crate::default();
        all.add_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[]);
        all
    }

    fn add_folder(&mut self, folder: &Path, module: &[String]) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let child = [module, &[name.to_owned()]].concat();
            match name {
                "main" | "tests" => {}
                _ if path.is_dir() => self.add_folder(&path, &child),
                _ if path.extension().is_none_or(|extension| extension != "rs") => {}
                "lib" | "mod" => self.add(module.to_vec(), &fs::read_to_string(&path).unwrap()),
                _ => self.add(child, &fs::read_to_string(&path).unwrap()),
            }
        }
    }

    fn add(&mut self, module: Module, text: &str) {
        let (mut lines, mut code) = (text.lines(), String::new());
        while let Some(line) = lines.next() {
            let line = line.split("//").next().unwrap_or_default();
            match line.strip_suffix(" {").and_then(|line| line.rsplit_once("mod ")) {
                Some((_, name)) if !line.starts_with(' ') => {
                    let inside =
                        lines.by_ref().take_while(|line| *line != "}").collect::<Vec<_>>().join("\n");
                    if name != "tests" {
                        self.add([&module[..], &[name.to_owned()]].concat(), &inside);
                    }
                }
                _ => code += &format!("{line}\n"),
            }
        }
        for path in imports(&code, false) {
            let (path, alias) = path.split_once(" as ").unwrap_or((&path, ""));
            let name = if alias.is_empty() { path.rsplit("::").next().unwrap_or_default() } else { alias };
            self.names.insert((module.clone(), name.trim().to_owned()), path.to_owned());
        }
        self.code.insert(module, code);
    }

    /// The module that a path in `module` leads to; none if it leads out of the crate.
    fn target(&self, module: &[String], path: &str) -> Option<Module> {
        let mut at = module.to_vec();
        let child = |at: &Module, word: &str| [&at[..], &[word.to_owned()]].concat();
        let mut words = path.split("::").map(str::trim).peekable();
        match *words.peek()? {
            "crate" => at.clear(),
            "self" | "super" => {}
            first => drop(self.code.get(&child(&at, first))?),
        }
        for word in words {
            match word {
                "crate" | "self" => {}
                "super" => drop(at.pop()),
                _ if self.code.contains_key(&child(&at, word)) => at = child(&at, word),
                _ => match self.names.get(&(at.clone(), word.to_owned())) {
                    Some(path) => at = self.target(&at, path).unwrap_or(at),
                    None => break,
                },
            }
        }
        Some(at)
    }

    /// Which child imports which, by their parent.
    fn siblings(&self) -> BTreeMap<Module, BTreeSet<(String, String)>> {
        let mut all: BTreeMap<Module, BTreeSet<_>> = BTreeMap::new();
        for (module, code) in &self.code {
            let paths = imports(code, true).into_iter().chain(inline_paths(code));
            for target in paths.filter_map(|path| self.target(module, &path)) {
                let common = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
                if let (Some(from), Some(to)) = (module.get(common), target.get(common)) {
                    all.entry(module[..common].to_vec()).or_default().insert((from.clone(), to.clone()));
                }
            }
        }
        all
    }

    /// The imports that are parts of circles.
    fn circles(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (parent, imports) in self.siblings() {
            for (from, to) in &imports {
                let mut reached = BTreeSet::from([to]);
                while let Some((_, next)) =
                    imports.iter().find(|(from, next)| reached.contains(from) && !reached.contains(next))
                {
                    reached.insert(next);
                }
                if reached.contains(from) {
                    found.push(format!("{}: {from} imports {to}", parent.join("::")));
                }
            }
        }
        found
    }
}

/// The paths that `use` names, `indented` or not.
fn imports(code: &str, indented: bool) -> Vec<String> {
    let mut found = Vec::new();
    for statement in code.split(';') {
        let lines = statement.lines().map(|line| if indented { line.trim_start() } else { line });
        let lines: Vec<&str> = lines.collect();
        let is_use =
            |line: &&str| line.starts_with("use ") || line.starts_with("pub") && line.contains(" use ");
        if let Some(first) = lines.iter().position(is_use) {
            let text = lines[first..].join(" ");
            found.extend(branches(text.split_once("use ").map_or("", |(_, tree)| tree)));
        }
    }
    found
}

/// The paths of a tree: of `a::{b, c::{d, e}}` they are `a::b`, `a::c::d` and `a::c::e`.
fn branches(tree: &str) -> Vec<String> {
    let Some((trunk, rest)) = tree.split_once('{') else { return vec![tree.trim().to_owned()] };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in inner.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 {
            parts.push(String::new());
        } else {
            parts.last_mut().unwrap().push(c);
        }
    }
    let paths = parts.iter().filter(|part| !part.trim().is_empty()).flat_map(|part| branches(part));
    paths.map(|path| format!("{}{path}", trunk.trim())).collect()
}

/// The paths that stand in code itself.
fn inline_paths(code: &str) -> Vec<String> {
    let is_of_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = code.split(|c| !is_of_path(c));
    words
        .filter(|word| word.starts_with("crate::") || word.starts_with("super::"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_folder_imports_only_what_stands_before_it_in_the_list() {
    let list = include_str!("../ARCHITECTURE.md").lines().filter_map(|line| line.strip_prefix("| `src/"));
    let list: Vec<&str> = list.filter_map(|row| row.split('`').next()?.split(".rs").next()).collect();
    let place = |name: &str| {
        list.iter().position(|listed| *listed == name).unwrap_or_else(|| panic!("{name} is not in the list"))
    };
    let imports = &Crate::read().siblings()[&vec![]];
    let wrong: Vec<_> = imports.iter().filter(|(from, to)| place(to) >= place(from)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn no_two_modules_of_a_folder_import_each_other() {
    let circles = Crate::read().circles();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn imports_are_seen_however_they_are_written() {
    let circles = |a: &str, b: &str| {
        let mut all = Crate::default();
        all.add(vec![], "mod a;\nmod b;\nmod c;\npub use a::Of;\npub use b::{\n    self as other, To,\n};");
        for (name, text) in [("a", a), ("b", b), ("c", "use super::a;")] {
            all.add(vec![name.to_owned()], text);
        }
        all.circles().len()
    };
    for a in [
        "use super::b;",
        "use std::fs;\nuse crate::{\n    a::{self},\n    b::{C, To as T},\n};",
        "use crate::To;",
        "pub(crate) use super::other::*;",
        "fn f() { Some(crate::b::f()) }",
        "fn f(_: &super::b::T) {}",
    ] {
        assert_eq!(circles(a, "use crate::Of;"), 2, "{a}");
        assert_eq!(circles(a, "use super::c::X;"), 3, "{a} by way of c");
    }
    for a in ["use std::b;", "// use super::b;", "#[cfg(test)]\nmod tests {\n    use super::super::b;\n}"] {
        assert_eq!(circles(a, "use crate::Of;"), 0, "{a}");
    }
}
