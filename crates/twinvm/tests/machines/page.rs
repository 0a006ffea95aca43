//! `docs/operators.md` as somebody reads it who does what it says: the commands of a section, in order, and the files that it shows.

/// The page.
const PAGE: &str = include_str!("../../../../docs/operators.md");
/// The hosts that the page sets up, by the prompts of their commands.
pub const HOSTS: [&str; 3] = ["a", "b", "c"];
/// The address that the page gives where each host has its own.
const OWN_ADDRESS: &str = "192.0.2.11";

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The number of the host that it is done on; all of them if there is none.
    pub host: Option<usize>,
    /// A command to run or a file to write.
    pub deed: Deed,
}

/// What there is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A command, of several lines if it has a document in it.
    Run(String),
    /// A file to write.
    Write {
        /// Its path.
        path: String,
        /// What it is to hold.
        text: String,
    },
}

impl Deed {
    /// The same on a host that has an address of its own, where the page has each host's own.
    pub fn with_address(&self, address: &str) -> Self {
        self.map(|text| text.replace(OWN_ADDRESS, address))
    }

    /// The same with a token that lets a host join.
    pub fn with_token(&self, token: &str) -> Self {
        self.map(|text| text.replace("TOKEN", token))
    }

    fn map(&self, change: impl Fn(&str) -> String) -> Self {
        match self {
            Self::Run(command) => Self::Run(change(command)),
            Self::Write { path, text } => Self::Write { path: path.clone(), text: change(text) },
        }
    }
}

/// What the section with this heading says to do.
///
/// # Panics
/// There is no such section, or a file in it has no path.
pub fn steps(heading: &str) -> Vec<Step> {
    let section = PAGE.split("\n## ").find(|section| section.lines().next() == Some(heading));
    let section = section.unwrap_or_else(|| panic!("the page has no section {heading:?}"));
    let mut steps = Vec::new();
    let mut before = "";
    for (number, part) in section.split("\n```").enumerate() {
        // Texts and blocks take turns.
        if number % 2 == 0 {
            before = part;
            continue;
        }
        let (language, block) = part.split_once('\n').unwrap_or((part, ""));
        match language {
            "sh" => steps.extend(commands(block)),
            "ini" => {
                let path = path_in(before).unwrap_or_else(|| panic!("no path before the file\n{block}"));
                let deed = Deed::Write { path: path.to_owned(), text: format!("{block}\n") };
                steps.push(Step { host: None, deed });
            }
            "" => {}
            _ => panic!("what is to be done with a block of {language}?"),
        }
    }
    steps
}

/// The last absolute path that a text names.
fn path_in(text: &str) -> Option<&str> {
    text.split('`').skip(1).step_by(2).filter(|quoted| quoted.starts_with('/')).last()
}

/// The commands of a block. Where some have prompts, lines without are what the commands print.
fn commands(block: &str) -> Vec<Step> {
    let has_prompts = block.lines().any(|line| prompt(line).is_some());
    let (mut steps, mut lines) = (Vec::new(), block.lines());
    while let Some(line) = lines.next() {
        let (host, mut command) = match prompt(line) {
            Some((host, command)) => (Some(host), command.to_owned()),
            None if has_prompts || line.is_empty() => continue,
            None => (None, line.to_owned()),
        };
        if let Some((_, word)) = command.split_once("<<'") {
            let end = word.trim_end_matches('\'').to_owned();
            for line in lines.by_ref() {
                command += &format!("\n{line}");
                if line == end {
                    break;
                }
            }
        }
        steps.push(Step { host, deed: Deed::Run(command) });
    }
    steps
}

/// The number of the host whose prompt a line begins with, and the rest of the line.
fn prompt(line: &str) -> Option<(usize, &str)> {
    let (name, command) = line.split_once("# ")?;
    Some((HOSTS.iter().position(|host| *host == name)?, command))
}

#[test]
fn commands_files_and_output_are_told_apart() {
    let run = |host, command: &str| Step { host, deed: Deed::Run(command.to_owned()) };
    assert_eq!(commands("a# x y   # why\noutput\nb# z"), [run(Some(0), "x y   # why"), run(Some(1), "z")]);
    assert_eq!(
        commands("cat > f <<'END'\na = 1\n\nEND\nlast"),
        [run(None, "cat > f <<'END'\na = 1\n\nEND"), run(None, "last")]
    );
    assert_eq!(path_in("`x`, `/etc/a`, as `/etc/b` with `y`:\n"), Some("/etc/b"));
}

/// What is followed word for word on three machines has these in it, so that no block gets lost by the way it is written.
#[test]
fn the_page_sets_hosts_up_step_by_step() {
    let steps = steps("Setting up three hosts");
    let position = |what: &str| {
        let fits = |step: &Step| match &step.deed {
            Deed::Run(command) => command.contains(what),
            Deed::Write { path, .. } => path.contains(what),
        };
        steps.iter().position(fits).unwrap_or_else(|| panic!("the page does not say {what:?}"))
    };
    let order = [
        "apt-get install",
        "/etc/systemd/network/10-br0.network",
        "twinvm cluster etcd ",
        "scp -r etcd/c",
        "/etc/systemd/system/twinvm.service",
        "twinvm cluster init ",
        "twinvm host token b",
        "join TOKEN --name c",
        "twinvm operator issue",
    ]
    .map(position);
    assert!(order.is_sorted(), "{order:?}");
}
