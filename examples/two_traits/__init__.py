"""A small world in which two personas move two traits of an answer, and a model of it: what dials are tested on."""
