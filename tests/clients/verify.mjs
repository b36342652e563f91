// Reads lines of {"secret", "headers", "body"}; verifies each by the reference library and prints how many it took.
import { createInterface } from "node:readline";
import { Webhook } from "standardwebhooks";

let verified = 0;
const refused = [];
for await (const line of createInterface({ input: process.stdin })) {
  const { secret, headers, body } = JSON.parse(line);
  try {
    new Webhook(secret).verify(body, headers);
    verified += 1;
  } catch (error) {
    refused.push(`${headers["webhook-id"]}: ${error.message}`);
  }
}
console.log(JSON.stringify({ verified, refused }));
