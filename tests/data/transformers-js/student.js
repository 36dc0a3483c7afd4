// Prints what transformers.js computes from a folder: node student.js FOLDER PICTURE DTYPE TEXT ...
// DTYPE none: token ids alone.
import path from 'node:path';
import {
  AutoModel, AutoProcessor, AutoTokenizer, RawImage, SiglipTextModel, SiglipVisionModel, env, pipeline,
} from '@huggingface/transformers';

const [folder, picture, dtype, ...texts] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder);
const name = path.basename(folder);

const tokenizer = await AutoTokenizer.from_pretrained(name);
const ids = tokenizer(texts, { padding: 'max_length', truncation: true });
const found = { ids: ids.input_ids.tolist().map((row) => row.map(Number)) };
if (dtype !== 'none') {
  const processor = await AutoProcessor.from_pretrained(name);
  const { height, width } = processor.image_processor.config.size;
  const image = (await RawImage.read(picture)).rgb();
  const pixels = await processor(await image.resize(width, height, { resample: 'lanczos' }));
  const of = async (kind, inputs) => (await kind.from_pretrained(name, { dtype }))(inputs);
  found.logits = (await of(AutoModel, { ...ids, ...pixels })).logits_per_image.tolist();
  found.texts = (await of(SiglipTextModel, ids)).text_embeds.tolist();
  found.images = (await of(SiglipVisionModel, pixels)).image_embeds.tolist();
  const classify = await pipeline('zero-shot-image-classification', name, { dtype });
  found.scores = await classify(picture, texts, { hypothesis_template: '{}' });
}
console.log(JSON.stringify(found));
