//! Decisions of the controller: a state in, the expected actions out. Each file of `decisions` is a story of one host; whoever changes the
//! controller sees there what changes for whom.

mod consent;
mod story;

use std::fs;
use std::path::Path;

use story::Story;

fn stories() -> Vec<(String, Story)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/controller/decisions");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |path: &Path| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let story =
            toml::from_str(&fs::read_to_string(path).unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, story)
    };
    files.iter().map(|path| read(path)).collect()
}

#[test]
fn decisions_are_those_that_are_written_down() {
    let mut wrong = Vec::new();
    let stories = stories();
    assert!(stories.len() > 10, "the stories were not found");
    for (name, story) in stories {
        for (step, (expected, decided)) in story.tell().into_iter().enumerate() {
            if expected != decided {
                wrong.push(format!("{name}, step {step}:\n  expected {expected:#?}\n  decided {decided:#?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_same_story_is_told_in_the_same_way() {
    for (_, story) in stories() {
        assert_eq!(story.tell(), story.tell());
    }
}
