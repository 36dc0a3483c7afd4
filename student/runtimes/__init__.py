"""Files of a student for other runtimes: ONNX, transformers.js; and the check that they are right."""
