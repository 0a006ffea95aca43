//! What the planner says of a cluster: each file of `cases` is one, a state in, what is asked and what is answered. Whoever changes the planner sees there what
//! changes for whom.

mod case;
mod properties;

use std::fs;
use std::path::Path;

use case::Case;

#[test]
fn answers_are_those_that_are_written_down() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/planner/cases");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (mut wrong, mut questions) = (Vec::new(), 0);
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let case: Case =
            toml::from_str(&fs::read_to_string(&file).unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (number, (expected, answered)) in case.answers().into_iter().enumerate() {
            questions += 1;
            if expected != answered {
                wrong.push(format!("{name}, question {number}:\n  expected {expected:#?}\n  answered {answered:#?}"));
            }
        }
    }
    assert!(questions > 100, "the cases were not found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
