// Calls of the service with grpc-js, one for each line of standard input, one after another. A line is JSON: {address, protos,
// method, jwt, serviceConfig, seconds}; so is what is printed: {code, message, headers, pushback}.
'use strict';

const readline = require('node:readline');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

function makeCall(call) {
  const definition = protoLoader.loadSync('forsta/ephemeraltoken/v1/ephemeral_token.proto', {
    includeDirs: call.protos,
  });
  const { EphemeralTokenService } = grpc.loadPackageDefinition(definition).forsta.ephemeraltoken.v1;
  const client = new EphemeralTokenService(call.address, grpc.credentials.createInsecure(), {
    'grpc.service_config': call.serviceConfig,
    'grpc.use_local_subchannel_pool': 1,
  });
  const metadata = new grpc.Metadata();
  metadata.set('authorization', `JWT ${call.jwt}`);
  return new Promise((resolve) => {
    let headers = false;
    const stream = client[call.method]({}, metadata, { deadline: Date.now() + call.seconds * 1000 }, (err) => {
      const [pushback] = err ? err.metadata.get('grpc-retry-pushback-ms') : [];
      client.close();
      resolve({ code: grpc.status[err ? err.code : grpc.status.OK], message: err ? err.details : '', headers, pushback });
    });
    stream.on('metadata', () => {
      headers = true;
    });
  });
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await makeCall(JSON.parse(line))));
  }
})();
