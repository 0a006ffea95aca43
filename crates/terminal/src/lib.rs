//! How a command of twinvm talks with its user: what it prints and draws, what it lets them choose, and Ctrl-C.
//!
//! | module | holds |
//! | --- | --- |
//! | `output` | lines, tables and JSON, and figures for people |
//! | `error_text` | an error with its causes, nothing said twice |
//! | `image_progress` | the bars of an image's build |
//! | `choices` | values of options that several commands have |
//! | `interrupt` | Ctrl-C and SIGTERM as a request to stop |

pub mod choices;
pub mod error_text;
pub mod image_progress;
pub mod interrupt;
pub mod output;
